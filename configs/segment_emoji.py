"""Masks of emoji in scenes, by their names, from the towers of `clip_emoji.py`.

    python -m vit_jax.train --config configs/clip_emoji.py --workdir runs/clip_emoji
    python -m vit_jax.train --config configs/segment_emoji.py --workdir runs/segment_emoji

Result: mIoU of 53.2% +- 0.6 on seen names, 28.3% +- 0.5 on held-out names, 45.9% +- 0.4 on drawings
of the held-out artist (three seeds, 500 scenes each, one CLIP).
Time: 20 minutes for the second command on two CPU cores. Needs the extra [samples].

Scenes have 64 x 64 px, that is, 16 x 16 patches. The decoder reads blocks 1, 3 and 5 of 6; the
towers have no class token. It has one head: on a CPU, the softmax of four takes most of its time.
With the published recipe's frozen towers, or with few names per scene, no mask was found after 300
steps. So the image tower is trained, and a scene is asked for its own names and 12 others, whose
pixels count a quarter. Probabilities are low after so few steps: the threshold is the best one on
other scenes. Set `init.weights` and `model.tokenizer` where the first workdir is another one.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

from . import clip_emoji

CLIP = "runs/clip_emoji"
SIZE = 64  # px
# Drawings of 19 to 38 px, about as large as in the images of the CLIP.
SCENES = f"size={SIZE}&max_drawings=4&min_scale=0.3&max_scale=0.6"


def get_config(arg: str = "") -> ConfigDict:
    """CLIPSeg's decoder on the small CLIP; the text tower is frozen."""
    config = default_config(model="clipseg_emoji", objective="clipseg", optimizer="muon")
    config.model.image.image_size = SIZE
    config.model.update(decoder_heads=1, decoder_mlp_dim=128)
    config.model.tokenizer = f"saved:{CLIP}"
    config.init.update(weights=CLIP, fresh=("decoder/.*",))
    config.optim.freeze = ("text.*",)
    config.objective.negative_weight = 0.25

    config.data.train = f"emoji_scenes:train?{SCENES}&count=100000"
    config.data.templates = clip_emoji.TEMPLATES
    config.data.augment = (
        "color_shift(hue=0.12, saturation=0.35, brightness=0.1, contrast=0.2, shade=0.1)"
    )
    config.data.detection.update(max_queries=16, negatives=12, mask_stride=2)
    config.batch_size, config.total_steps = 8, 1000
    config.compute.scan = False  # unrolled blocks run faster on a CPU

    config.optim.update(lr=2e-3, warmup_percent=5.0, weight_decay=0.05, b2=0.98, grad_clip_norm=1.0)

    config.evals.text_segmentation = {
        name: {"data": f"emoji_scenes:{split}?{SCENES}&count=500", "threshold": 0.15, **optional}
        for name, split, optional in (
            ("seen", "test", {}),
            ("heldout_names", "heldout_names", {}),
            ("heldout_artist", "heldout_artist", {"optional": True}),
        )
    }
    config.eval_batch_size = 64
    return config
