r"""OWLv2 B/16 by self-training on pseudo-labels (Minderer et al. 2023, OWL-ST).

    python -m vit_jax.train --config configs/owlv2_b16.py --workdir DIR \
        --config.init.weights=clip-vit-base-patch16/

Result: row 11 of table 1 in the paper; nothing was measured here. Time: not published.
Planned for a TPU v5e 8x8 slice, 388 ms per step and 4.9 GiB per chip (the compiler's estimate):

    python -m vit_jax.plan --config configs/owlv2_b16.py --topology v5e:8x8

Set `init.weights` to CLIP's ViT-B/16, and `data.train` to pseudo-labels in COCO's form: those of
`vit_jax.detect(detector, images, names, output=FILE)`, with names of the captions. The size of
images is the published one; batch, learning rates and prompts are those of OWL-ViT. The paper
trains with Adafactor, drops patches of low variance, computes losses of the predictions with the
highest objectness only, and uses larger mosaics; none of these is done here.
"""

from ml_collections import ConfigDict

from . import owlvit_b32


def get_config(arg: str = "") -> ConfigDict:
    """OWL-ViT's recipe with OWLv2's size, schedule and objectness."""
    config = owlvit_b32.get_config(arg)
    config.model = {"name": "owlv2_base_patch16"}
    config.init.model = "clip_vit_b16"

    config.data.train = "coco:pseudo_labels.json?images=webli"
    config.data.augment = "flip|random_crop(scale=(0.33, 1))|mosaic((0.4, 0.3, 0.3))"
    config.total_steps = 500_000
    config.optim.update(schedule="rsqrt", cooldown_steps=20_000)
    config.mesh.fsdp = 8
    return config
