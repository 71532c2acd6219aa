"""A small SAM on scenes of emoji, by points and boxes.

python -m vit_jax.train --config configs/sam_emoji.py --workdir runs/sam_emoji
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

SIZE = 64  # px
SCENES = f"size={SIZE}&max_drawings=4&min_scale=0.3&max_scale=0.6"


def get_config(arg: str = "") -> ConfigDict:
    """Fresh parameters; 8 x 8 patches, masks of 32 x 32 cells."""
    config = default_config(model="sam_vit_b", objective="sam")
    config.model.image.update(
        image_size=SIZE, patch_size=8, width=128, depth=4, num_heads=4, mlp_dim=512
    )
    config.model.image.update(num_global=2, window_size=4, out_width=64)
    config.model.update(num_heads=4, mlp_dim=256)
    config.objective.update(points=4)

    config.data.train = f"emoji_scenes:train?{SCENES}&count=100000"
    config.data.augment = (
        "color_shift(hue=0.12, saturation=0.35, brightness=0.1, contrast=0.2, shade=0.1)"
    )
    config.data.detection.update(max_boxes=4, mask_stride=2)
    config.batch_size, config.total_steps = 16, 1500
    config.compute.scan = False  # unrolled blocks run faster on a CPU

    config.optim.update(lr=1e-3, warmup_percent=5.0, weight_decay=0.05, grad_clip_norm=1.0)
    return config
