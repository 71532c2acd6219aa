"""The loss of CLIPSeg and its gradient against NumPy in float64, with a stand-in for the model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import SIZE, build, context, random_images, small_vit, step_on_devices
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef

IMAGES, PROMPTS, LENGTH, STRIDE = 16, 4, 3, 2
GRID = SIZE[0] // STRIDE, SIZE[1] // STRIDE


@dataclasses.dataclass(frozen=True, kw_only=True)
class PainterConfig:
    """Logits of pixels: products of their colors and of a vector for the first token."""

    image_size: tuple[int, int] = SIZE

    def make(self, **execution: Any) -> "Painter":
        return Painter(execution["rngs"])


class Painter(nnx.Module):
    def __init__(self, rngs):
        self.words = nnx.Embed(20, 3, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)

    def layers_above(self):
        return {}

    def masks_of(self, images, conditions):
        return {"masks": jnp.einsum("bhwd,bcd->bchw", images, conditions)}

    def __call__(self, images, tokens, *, rng=None):
        return self.masks_of(images, self.words(tokens[..., 0]))


def make_batch():
    """From no prompt to four; every third one is a negative; some cells do not count."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 20, (IMAGES, PROMPTS, LENGTH)).astype(np.int32)
    tokens[np.arange(PROMPTS) >= np.arange(IMAGES)[:, None] % (PROMPTS + 1)] = 0
    masks = rng.random((IMAGES, PROMPTS, *GRID)) < 0.3
    masks[:, ::3] = False
    return {
        "image": np.asarray(random_images(IMAGES)[0]),
        "tokens": tokens,
        "query_masks": masks & (tokens[..., :1, None] > 0),
        "valid": rng.random((IMAGES, *GRID)) < 0.8,
    }


def reference(table, batch, negative_weight):
    """Loss, metrics and gradient of the vectors, prompt by prompt."""
    _, seen = random_images(IMAGES)
    loss, cells, gradient, ious, false_cells = 0.0, 0, np.zeros_like(table), [], []
    for image, tokens, masks, valid in zip(
        seen, batch["tokens"], batch["query_masks"], batch["valid"], strict=True
    ):
        squares = image.reshape(GRID[0], STRIDE, GRID[1], STRIDE, 3).mean(axis=(1, 3))[valid]
        for token, mask in zip(tokens[:, 0], masks, strict=True):
            if token == 0:
                continue
            logits, target = squares @ table[token], mask[valid]
            weight = 1 if target.any() else negative_weight
            loss += weight * np.sum(np.logaddexp(0, logits) - target * logits)
            gradient[token] += weight * (1 / (1 + np.exp(-logits)) - target) @ squares
            cells += weight * len(target)
            found = logits > 0
            if target.any():
                ious.append((found & target).sum() / (found | target).sum())
            else:
                false_cells.append(found.mean())
    metrics = {
        "iou": np.mean(ious),
        "false_cells": np.mean(false_cells),
        "prompts_per_image": (len(ious) + len(false_cells)) / IMAGES,
    }
    return loss / cells, metrics, gradient / cells


@pytest.mark.parametrize(
    ("devices", "microbatches", "negative_weight"), [(1, 1, 1.0), (8, 2, 0.25)]
)
def test_loss_and_gradient(devices, microbatches, negative_weight):
    architecture = PainterConfig()
    ctx = context(architecture, microbatches=(microbatches, devices))
    objective = build("clipseg", ctx, negative_weight=negative_weight)
    params = ModelDef(architecture).init(jax.random.key(0))
    table = np.asarray(params["words"]["embedding"], np.float64)
    batch = make_batch()
    (loss, metrics), gradients = step_on_devices(objective, params, batch, devices)
    expected, expected_metrics, gradient = reference(table, batch, negative_weight)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    np.testing.assert_allclose(gradients["words"]["embedding"], gradient, rtol=1e-4, atol=1e-7)


def test_errors():
    with pytest.raises(UserError, match="needs a segmenter, as clipseg_rd64; found ViTConfig"):
        build("clipseg", context(small_vit()))
    with pytest.raises(UserError, match=r"negative_weight=-1\.0: expected 0 or more"):
        build("clipseg", context(PainterConfig()), negative_weight=-1.0)
