r"""CLIPA ViT-L/16 (Li et al. 2023): CLIP on small images, then a short part on whole ones.

    python -m vit_jax.train --config configs/clipa_l16.py --workdir DIR \
        --config.data.train=folder:/data/laion

Result: 67.8% zero-shot on ImageNet (published, for 16 patches and 16 text tokens; here captions
have 32 tokens throughout). Time: three days on eight A100 (published).
Planned for a TPU v5e 16x16 slice:

    python -m vit_jax.plan --config configs/clipa_l16.py --topology v5e:16x16 [--stage small]

The authors start the second part anew, with a tenth of the rate; here it is a stage of one run,
under one schedule, whose rate is then below a hundredth of its peak. The authors' text tower uses
WordPiece; this recipe uses CLIP's tokenizer. Set `data.train` to your pairs, and start the command
on every host.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

SMALL, WHOLE = 2_560_000_000, 131_072_000  # examples of the parts


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe, sharded for a pod."""
    config = default_config(model="openclip_vit_l14", objective="contrastive", optimizer="adamw")
    config.model.image = {
        "name": "vit_l16",
        "num_classes": 0,
        "pool": "mean",
        "position_init": "sincos",
    }
    config.model.text.context_length = 32
    config.stages.small = {
        "until_percent": 100 * SMALL / (SMALL + WHOLE),
        "model": {"image": {"image_size": 64}},
    }

    config.data.train = "folder:/data/laion"
    config.data.augment = "random_resized_crop(scale=(0.4, 1.0))"
    config.data.workers = 16
    config.batch_size = 32_768
    config.total_examples = SMALL + WHOLE
    config.optim.lr = 8e-6 * config.batch_size / 256
    config.optim.update(warmup_examples=52_428_800, weight_decay=0.2, b2=0.95)

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    config.mesh.fsdp = 16  # one row of a 16 x 16 slice
    config.eval_batch_size = 2048
    config.checkpoint_percent = 1.0
    return config
