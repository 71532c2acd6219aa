"""CLIP on the embedded emoji: names and drawings by two artists, ten minutes on two CPU cores.

python -m vit_jax.train --config configs/clip_emoji.py --workdir runs/clip_emoji
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

TEMPLATES = ("{}", "a picture of {}", "an emoji of {}")


def get_config(arg: str = "") -> ConfigDict:
    """The defaults of a small CLIP, changed for the emoji."""
    config = default_config(model="clip_vit_emoji")

    config.data.train = "emoji:train"
    config.data.group_by = ("name", "toned")
    config.data.templates = TEMPLATES
    config.data.augment = (
        "background(white=0.4)"
        "|affine(rotate=4, scale=(0.82, 1.1), aspect=0.08, shear=0.03, shift=0.05)"
        "|color_shift(hue=0.12, saturation=0.35, brightness=0.1, contrast=0.2, shade=0.1)"
        "|cutout(0.05)"
    )
    config.batch_size = 256
    config.total_steps = 1150
    config.compute.scan = False  # a CPU runs unrolled blocks faster

    # AdamW needs twice the steps to the same loss.
    config.optim.name = "muon"
    config.optim.lr = 2e-3
    config.optim.warmup_percent = 6.0
    config.optim.weight_decay = 0.2
    config.optim.b2 = 0.98
    config.optim.grad_clip_norm = 1.0

    config.evals.zeroshot = {
        "heldout_names": {
            "data": "emoji:heldout_names",
            "classes": "present",
            "templates": TEMPLATES,
        },
        "heldout_base": {
            "data": "emoji:heldout_base",
            "classes": "present",
            "templates": TEMPLATES,
        },
        "all_names": {"data": "emoji:heldout_names", "templates": TEMPLATES},
        "heldout_artist": {
            "data": "emoji:heldout_artist",
            "templates": TEMPLATES,
            "optional": True,
        },
    }
    config.evals.retrieval = {"heldout_names": {"data": "emoji:heldout_names"}}
    config.evals.probe = {"digits": {"train": "digits:train", "test": "digits:test"}}
    return config
