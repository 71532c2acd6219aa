"""A run of a small CLIPSeg on scenes of emoji."""

import json

import jax
import numpy as np
import pytest

from vit_jax import experiment
from vit_jax.config import default_config

SCENES = "emoji_scenes:train?size=32&max_drawings=2&min_scale=0.4&max_scale=0.7&count=4000"
STEPS = 120


def small_config():
    """Six blocks without a class token, of which the decoder reads three."""
    config = default_config(model="clipseg_emoji", objective="clipseg")
    config.model.image.update(image_size=32, width=32, num_heads=2, mlp_dim=64)
    config.model.text.update(width=32, depth=1, num_heads=2, mlp_dim=64)
    config.model.update(embed_dim=32, reduced_width=32)
    config.data.train = SCENES
    config.data.detection.update(max_queries=4, negatives=2, mask_stride=1)
    config.batch_size, config.total_steps, config.log_steps = 32, STEPS, STEPS // 6
    config.optim.update(lr=3e-3, grad_clip_norm=1.0, warmup_steps=5)
    return config


@pytest.mark.release
def test_the_loss_falls(tmp_path):
    assert jax.device_count() == 8
    experiment.train(small_config(), tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in lines if "loss" in line]
    print(lines)
