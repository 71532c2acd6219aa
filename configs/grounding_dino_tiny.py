r"""Grounding DINO with Swin-T, on Objects365 and grounding data (Liu et al. 2023).

    python -m vit_jax.train --config configs/grounding_dino_tiny.py --workdir DIR \
        --config.init.weights=swin-tiny-patch4-window7-224/ \
        --config.model.tokenizer="huggingface:bert/tokenizer.json?start=[CLS]&end=[SEP]&pad=[PAD]"

Result: 48.1 AP on COCO without its training images (table 2 of the paper, O365 and GoldG); nothing
was measured here. Time: not published. Planned for a TPU v5e 4x8 slice with one image per chip,
1.85 s per step and 6.8 GiB per chip (the compiler's estimate):

    python -m vit_jax.plan --config configs/grounding_dino_tiny.py --topology v5e:4x8

Of the paper, section 4.1 and appendix: 900 queries, 256 tokens, batch, AdamW, rates of 1e-4 and of
1e-5 for both backbones, weight decay, clipping and weights of the losses. Of the authors' issue 5:
about 50 epochs. Of the configuration of Open-GroundingDino: flips, crops and 50 names. Our choice:
the schedule, and the stochastic depth of Swin-T on ImageNet.

Set `data.train` to annotations in COCO's form and to captions with boxes. `init.weights` takes one
file: that of Swin-T, beside which BERT starts from random parameters, or that of a Grounding DINO,
then with `--config.init.fresh="()" --config.init.model=grounding_dino_tiny`. Here the shorter side
has 800 px, instead of 480 to 800 at random.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe; both backbones have a lower learning rate."""
    config = default_config(model="grounding_dino_tiny", objective="grounding", optimizer="adamw")
    config.model.image.drop_path = 0.2
    config.init.model = "swin_t"
    config.init.fresh = (
        *("image/norm/.*", "image/head/.*", "text.*", "level.*"),
        *("encoder/.*", "selection/.*", "decoder/.*"),
    )

    config.data.train = (
        "coco:objects365_train.json?images=objects365 + grounding:goldg.jsonl?images=goldg"
    )
    config.data.augment = "flip|random_crop"
    config.data.detection.update(max_queries=50, negatives=50)
    config.data.workers = 16
    config.batch_size = 32
    config.total_epochs = 50.0
    config.optim.update(lr=1e-4, weight_decay=1e-4, grad_clip_norm=0.1)
    config.optim.lr_factors = (("image/.*", 0.1), ("text/.*", 0.1))  # 1e-5

    config.compute.dtype = "bfloat16"
    config.compute.remat = "full"
    config.eval_batch_size = 32
    config.evals.detection = {"coco": {"data": "coco:instances_val2017.json?images=val2017"}}
    return config
