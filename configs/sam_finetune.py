r"""SAM ViT-B (Kirillov et al. 2023) fine-tuned on masks of your own, by clicks and boxes.

    python -m vit_jax.train --config configs/sam_finetune.py --workdir DIR \
        --config.init.weights=sam_vit_b/ \
        --config.data.train="coco:train.json?images=images"

    python -m vit_jax.train --config configs/sam_finetune.py:all ...

The first command trains the decoder and the prompt encoder; the second one the image encoder too,
with the layer decay, drop path and scale jitter of SAM's training and a tenth of the rate.

Result: depends on the data; nothing was measured here. Time: not published for fine-tuning.
Planned for a TPU v5e 2x4 slice:

    python -m vit_jax.plan --config configs/sam_finetune.py:all --topology v5e:2x4

Set `data.train` to masks (coco:, referring:, semantic:), `init.weights` to weights of SAM, and
`evals.interactive_segmentation` to held-out data. SAM was trained with a batch of 256, at most 64
masks per device, a rate of 8e-4 and AdamW with weight decay 0.1 for 90,000 steps; rate, batch and
length below are those of a fine-tuning.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Decoder and prompts, or all parameters.

    Args:
        arg: "all" to train the image encoder as well.
    """
    config = default_config(model="sam_vit_b", objective="sam")
    config.data.train = "coco:train.json?images=images"
    config.data.augment = "flip"
    config.data.detection.max_boxes = 16
    config.data.workers = 16
    config.batch_size = 16
    config.total_steps = 10_000
    config.optim.update(lr=8e-5, warmup_steps=250, weight_decay=0.1, grad_clip_norm=1.0)
    config.optim.freeze = ("image/.*",)
    if arg == "all":
        config.optim.freeze = ()
        config.optim.layer_decay = 0.8
        config.model.image.drop_path = 0.4
        config.data.augment = "flip|scale_jitter((0.1, 2.0))"

    config.compute.dtype = "bfloat16"
    config.compute.remat = "full"
    config.evals.interactive_segmentation = {
        "held_out": {"data": "coco:val.json?images=images"},
    }
    return config
