"""A run of a small SAM on scenes of emoji."""

import json

import jax
import numpy as np
import pytest

from vit_jax import experiment, recipes

SCENES = "emoji_scenes:heldout_base?size=64&count=256&max_drawings=3&min_scale=0.3&max_scale=0.6"


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_the_loss_falls_and_the_run_is_evaluated(tmp_path):
    """The recipe on eight devices, shorter and with one corrective point."""
    assert jax.device_count() == 8
    config = recipes.load_recipe("sam_emoji")
    config.data.train = SCENES
    config.objective.points = 1
    config.total_steps, config.log_steps = 160, 40
    config.evals = {
        "interactive_segmentation": {"train": {"data": SCENES + "[:40]", "points": (1, 3)}},
        "validation_loss": {"train": {"data": SCENES, "batch_size": 16, "examples": 32}},
    }
    metrics = experiment.train(config, tmp_path)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    print(f"losses {losses}, {metrics}")
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.75 * losses[0]
    assert metrics["interactive_segmentation/train/iou_box"] > 0.3
    assert metrics["validation_loss/train/loss"] < losses[0]
