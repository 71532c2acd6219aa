"""CLIP from scratch on the embedded emoji: names and drawings by two artists.

    python -m vit_jax.train --config configs/clip_emoji.py --workdir runs/clip_emoji

Time: ten to fifteen minutes on two CPU cores. Needs the extra [samples].
Result: 37.3% zero-shot top-1 over 191 held-out names (mean of three seeds; chance is 0.5%).
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

TEMPLATES = ("{}", "a picture of {}", "an emoji of {}")


def get_config(arg: str = "") -> ConfigDict:
    """A small CLIP with Muon and augmentation for drawings."""
    config = default_config(model="clip_vit_emoji", objective="contrastive", optimizer="muon")

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
    config.compute.scan = False  # unrolled blocks run faster on a CPU

    # AdamW needs twice the steps to reach the same loss.
    config.optim.update(lr=2e-3, warmup_percent=6.0, weight_decay=0.2, b2=0.98, grad_clip_norm=1.0)

    names = {"data": "emoji:heldout_names", "templates": TEMPLATES}
    base = {"data": "emoji:heldout_base", "templates": TEMPLATES}
    artist = {"data": "emoji:heldout_artist", "templates": TEMPLATES, "optional": True}
    config.evals.zeroshot = {
        "heldout_names": {**names, "classes": "present"},
        "heldout_base": {**base, "classes": "present"},
        "all_names": names,
        "heldout_artist": artist,
    }
    config.evals.retrieval = {"heldout_names": {"data": "emoji:heldout_names"}}
    config.evals.probe = {"digits": {"train": "digits:train", "test": "digits:test"}}
    return config
