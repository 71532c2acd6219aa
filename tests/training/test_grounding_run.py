"""Runs of a small Grounding DINO and a small GLIP on scenes of emoji."""

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
# Model -> objective, steps, learning rate, and the fraction of the first losses that the last ones
# fall below. The entropy of centerness is a lower bound of GLIP's.
RUNS = {
    "grounding_dino_tiny": ("grounding", 40, 1e-3, 0.6),
    "glip_tiny": ("dense_grounding", 80, 5e-3, 0.85),
}
HEADS = {
    "grounding_dino_tiny": {
        **{"num_levels": 3, "num_queries": 16, "num_heads": 2},
        **{"encoder_depth": 1, "encoder_mlp_dim": 32, "decoder_depth": 2, "decoder_mlp_dim": 32},
    },
    "glip_tiny": {"depth": 1, "fusion_heads": 2, "fusion_width": 32},
}


def small_config(model, folder):
    """A few layers of everything; scenes fill the input."""
    tokenizer = make_wordpiece(name.replace("_", " ") for name in open_source(SCENES).class_names)
    tokenizer.save(str(folder / "tokenizer.json"))
    objective, steps, lr, _ = RUNS[model]
    config = default_config(model=model, objective=objective)
    config.model.image.update(
        image_size=64, width=8, depths=(1, 1, 2), num_heads=(1, 1, 2), window_size=4
    )
    size = max(1030, tokenizer.get_vocab_size())
    config.model.text.update(
        vocab_size=size, context_length=48, width=32, depth=1, num_heads=2, mlp_dim=64
    )
    config.model.update(width=32, **HEADS[model])
    config.model.inputs.shortest_edge = 64
    config.model.tokenizer = f"huggingface:{folder}/tokenizer.json?start=[CLS]&end=[SEP]&pad=[PAD]"
    config.data.train = SCENES
    config.data.augment = "flip"
    config.data.detection.update(max_boxes=6, max_queries=8, negatives=4)
    config.batch_size, config.total_steps, config.log_steps = 16, steps, steps // 4
    config.optim.update(lr=lr, grad_clip_norm=0.5, warmup_steps=5)
    config.evals.detection = {"scenes": {"data": f"{SCENES}[:32]", "negatives": 4}}
    config.eval_batch_size = 16
    return config


@pytest.mark.release
@pytest.mark.parametrize("model", RUNS)
def test_the_loss_falls_and_the_run_detects(model, tmp_path):
    """Losses on eight devices, which fall; the detector of the workdir is called with words."""
    assert jax.device_count() == 8
    experiment.train(small_config(model, tmp_path), tmp_path / "run")
    lines = [*map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())]
    losses, ious = np.transpose([(line["loss"], line["iou"]) for line in lines if "loss" in line])
    print(f"{model}: losses {losses}, IoU {ious}")
    assert len(losses) == 4
    assert losses[-1] < RUNS[model][-1] * losses[0]
    assert ious[-1] > 1.3 * ious[0]
    assert np.isfinite(losses).all()
    print({name: value for name, value in lines[-1].items() if "AP" in name})
    assert lines[-1]["detection/scenes/AP50"] > 0

    detector = vit_jax.create_model(weights=tmp_path / "run")
    source = open_source(SCENES)
    names = source.class_names[:20]
    found = vit_jax.detect(detector, source[0]["image"], names, threshold=0.0, nms_threshold=1.0)
    assert len(found.boxes) >= 16
    assert (found.height, found.width) == (64, 64)
    assert {*found.names} <= {*names}
