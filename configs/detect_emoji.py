"""A detector of emoji in scenes, by their names, from the towers of `clip_emoji.py`.

    python -m vit_jax.train --config configs/clip_emoji.py --workdir runs/clip_emoji
    python -m vit_jax.train --config configs/detect_emoji.py --workdir runs/detect_emoji

Result: AP50 of 42.2 +- 0.4% on seen names, 8.4 +- 0.4% on held-out names, 34.0 +- 0.8% on drawings
of the held-out artist (mean and standard deviation of three seeds with one CLIP, which names 36.1%
of the held-out drawings; 500 scenes each, asked for their names and 20 others; 0% before training).
Time: 8.5 minutes for the second command on two busy CPU cores, 0.8 s per step. Needs the extras
[samples] and [detection].

Scenes have 64 x 64 px, that is, 16 x 16 patches, each of which predicts a box. The towers have no
class token: patches are multiplied by their mean. Patch dropout is off. Set `init.weights` and
`model.tokenizer` where the workdir of the first command is another one.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

from . import clip_emoji

CLIP = "runs/clip_emoji"
SIZE = 64  # px
# Drawings of 19 to 38 px, about as large as in the images of the CLIP.
SCENES = f"size={SIZE}&max_drawings=4&min_scale=0.3&max_scale=0.6"
NEGATIVES = 20  # names that a scene is asked for beside its own


def get_config(arg: str = "") -> ConfigDict:
    """OWLv2's heads on the small CLIP; the text tower is frozen."""
    config = default_config(model="owl_emoji", objective="owl", optimizer="muon")
    config.model.image.image_size = SIZE
    config.model.update(prior=0.01, init_class_scale=10.0)
    config.model.tokenizer = f"saved:{CLIP}"
    config.init.update(weights=CLIP, fresh=("merged_norm/.*", ".*_head/.*"))
    config.optim.freeze = ("text.*",)

    config.data.train = f"emoji_scenes:train?{SCENES}&count=100000"
    config.data.templates = clip_emoji.TEMPLATES
    config.data.augment = (
        "color_shift(hue=0.12, saturation=0.35, brightness=0.1, contrast=0.2, shade=0.1)"
    )
    config.data.detection.update(max_boxes=4, max_queries=4 + NEGATIVES, negatives=NEGATIVES)
    config.batch_size, config.total_steps = 16, 600
    config.compute.scan = False  # unrolled blocks run faster on a CPU

    config.optim.update(lr=1e-3, warmup_percent=5.0, weight_decay=0.05, b2=0.98, grad_clip_norm=1.0)

    shared = {"templates": clip_emoji.TEMPLATES, "negatives": NEGATIVES}
    config.evals.detection = {
        name: {**shared, "data": f"emoji_scenes:{split}?{SCENES}&count=500", "optional": optional}
        for name, split, optional in (
            ("seen", "test", False),
            ("heldout_names", "heldout_names", False),
            ("heldout_artist", "heldout_artist", True),
        )
    }
    config.eval_batch_size = 50
    return config
