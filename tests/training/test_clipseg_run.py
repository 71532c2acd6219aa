"""A run of a small CLIPSeg on colored squares, by the names of their colors."""

import json

import numpy as np
import pytest
from PIL import Image

import vit_jax
from vit_jax import experiment
from vit_jax.config import default_config

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (250,) * 3}
SIZE, COUNT, STEPS = 32, 256, 150


def draw(rng):
    """A square of one of the colors and a grey one on noise: pixels, name and mask."""
    pixels = rng.integers(60, 120, (SIZE, SIZE, 3)).astype(np.uint8)
    name = str(rng.choice(list(COLORS)))
    mask = np.zeros((SIZE, SIZE), bool)
    for color in ((90, 90, 90), COLORS[name]):
        top, left = rng.integers(0, SIZE - 14, 2)
        mask[:] = False
        mask[top : top + 14, left : left + 14] = True
        pixels[mask] = color
    return pixels, name, mask


def write_table(folder):
    rng, lines = np.random.default_rng(0), []
    for number in range(COUNT):
        pixels, name, mask = draw(rng)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number}_mask.png")
        lines.append({"image": f"{number}.png", "phrase": name, "mask": f"{number}_mask.png"})
    path = folder / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def small_config(table):
    """Three blocks without a class token, of which the decoder reads two."""
    config = default_config(model="clipseg_emoji", objective="clipseg")
    sizes = {"width": 32, "num_heads": 2, "mlp_dim": 64}
    config.model.image.update(image_size=SIZE, depth=3, **sizes)
    config.model.text.update(depth=1, vocab_size=300, context_length=8, **sizes)
    config.model.update(embed_dim=32, layers=(0, 2), reduced_width=32, decoder_mlp_dim=64)
    config.data.train = f"referring:{table}"
    config.data.detection.update(max_queries=2, negatives=1, mask_stride=1)
    config.batch_size, config.total_steps, config.log_steps = 32, STEPS, STEPS // 5
    config.optim.update(lr=3e-3, grad_clip_norm=1.0, warmup_steps=10)
    return config


@pytest.mark.release
def test_masks_follow_the_words(tmp_path):
    """Metrics of eight devices, and masks of new images by the model of the workdir."""
    (tmp_path / "data").mkdir()
    experiment.train(small_config(write_table(tmp_path / "data")), tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in lines if "loss" in line]
    assert len(lines) == 5
    assert lines[-1]["loss"] < 0.4 * lines[0]["loss"]
    assert lines[-1]["iou"] > 0.6
    assert lines[-1]["false_cells"] < 0.05

    model, rng = vit_jax.create_model(weights=tmp_path / "run"), np.random.default_rng(1)
    overlaps, others = [], 0
    for pixels, name, mask in (draw(rng) for _ in range(20)):
        found = vit_jax.segment(model, pixels, list(COLORS))
        masks = dict(zip(found.names, found.masks, strict=True))
        own = masks.pop(name, np.zeros_like(mask))
        overlaps.append((own & mask).sum() / (own | mask).sum())
        others += sum(each.sum() for each in masks.values())
    assert np.mean(overlaps) > 0.6  # 0.78 in one run, with no pixel of another name
    assert others < 0.01 * 20 * SIZE**2
