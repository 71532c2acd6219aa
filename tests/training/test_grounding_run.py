"""A run of a small Grounding DINO on scenes of emoji."""

import json

import jax
import numpy as np
import pytest

import vit_jax
from tests.fixtures.tokenizers.wordpiece import make_wordpiece
from vit_jax import experiment
from vit_jax.config import default_config
from vit_jax.data.sources import open_source

SCENES = "emoji_scenes:heldout_base?size=64&count=256"
STEPS = 40


def small_config(folder):
    """A few layers of everything; scenes fill the input."""
    tokenizer = make_wordpiece(name.replace("_", " ") for name in open_source(SCENES).class_names)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = default_config(model="grounding_dino_tiny", objective="grounding")
    config.model.image.update(
        image_size=64, width=8, depths=(1, 1, 2), num_heads=(1, 1, 2), window_size=4
    )
    size = max(1030, tokenizer.get_vocab_size())
    config.model.text.update(
        vocab_size=size, context_length=48, width=32, depth=1, num_heads=2, mlp_dim=64
    )
    sizes = {"width": 32, "num_levels": 3, "num_queries": 16, "num_heads": 2}
    config.model.update(**sizes, encoder_depth=1, encoder_mlp_dim=32)
    config.model.update(decoder_depth=2, decoder_mlp_dim=32)
    config.model.inputs.shortest_edge = 64
    config.model.tokenizer = f"huggingface:{folder}/tokenizer.json?start=[CLS]&end=[SEP]&pad=[PAD]"
    config.data.train = SCENES
    config.data.augment = "flip"
    config.data.detection.update(max_boxes=6, max_queries=8, negatives=4)
    config.batch_size, config.total_steps, config.log_steps = 16, STEPS, STEPS // 4
    config.optim.update(lr=1e-3, grad_clip_norm=0.5, warmup_steps=5)
    return config


@pytest.mark.release
def test_the_loss_falls_and_the_run_detects(tmp_path):
    """Losses on eight devices, which fall; the detector of the workdir is called with words."""
    assert jax.device_count() == 8
    experiment.train(small_config(tmp_path), tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.6 * losses[0]
    assert np.isfinite(losses).all()

    detector = vit_jax.create_model(weights=tmp_path / "run")
    source = open_source(SCENES)
    names = source.class_names[:20]
    found = vit_jax.detect(detector, source[0]["image"], names, threshold=0.0)
    assert len(found.boxes) >= 16
    assert (found.height, found.width) == (64, 64)
    assert {*found.names} <= {*names}
