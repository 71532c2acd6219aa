"""The loss of interactive segmentation, round by round in NumPy, around a tiny SAM."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import SIZE, build, context, random_images, small_vit, step_on_devices
from flax import nnx
from test_mask_losses import reference as mask_reference

from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.sam.encoder import SamEncoderConfig
from vit_jax.models.sam.model import SamConfig
from vit_jax.models.spec import ModelSpec
from vit_jax.objectives.sam import decode

GRID, IMAGES, MASKS, POINTS = SIZE, 8, 3, 1
SQUASH = ImageInputs(resize="squash")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClickedConfig:
    """Logits from the product of pixels and prompts, at the resolution of the image."""

    image_size: tuple[int, int] = SIZE

    def make(self, **execution: Any) -> "Clicked":
        return Clicked(execution["rngs"])


class Clicked(nnx.Module):
    def __init__(self, rngs):
        self.pixels = nnx.Linear(3, 4, rngs=rngs)
        self.kinds = nnx.Embed(5, 4, rngs=rngs)
        self.places = nnx.Linear(2, 4, rngs=rngs)
        self.masks = nnx.Linear(4, 4 * 5, rngs=rngs)
        self.scores = nnx.Linear(4, 4, rngs=rngs)

    def layers_above(self):
        return {}

    def embed_image(self, images, sizes, *, rng=None):
        return self.pixels(images) * sizes[:, None, None, :1] / 8

    def embed_prompts(self, embedded, points, labels, masks):
        tokens = self.kinds(labels + 1) + jnp.sin(self.places(points))
        back = jnp.zeros((*labels.shape[:2], *GRID)) if masks is None else jnp.tanh(masks)
        image = jnp.broadcast_to(embedded[:, None], (*labels.shape[:2], *embedded.shape[1:]))
        image = jnp.concatenate([image, back[..., None]], axis=-1)
        return image.reshape(-1, *image.shape[2:]), None, tokens.reshape(-1, *tokens.shape[2:])

    def decoder(self, image, positions, tokens, present):
        prompt = jnp.sum(tokens, axis=1, where=present[..., None])
        vectors = self.masks(prompt).reshape(-1, 4, 5)
        return jnp.einsum("bhwc,bmc->bmhw", image, vectors), self.scores(prompt)


def sam(architecture=None, microbatches=(1, 1), inputs=SQUASH, remat="none", **keys):
    ctx = context(architecture or ClickedConfig(), microbatches=microbatches)
    model = ModelDef(ctx.spec.architecture, remat=remat)
    spec = ModelSpec(architecture=ctx.spec.architecture, inputs=inputs)
    ctx = dataclasses.replace(ctx, spec=spec, model=model)
    return build("sam", ctx, **{"points": POINTS, **keys})


def make_batch(seed=0):
    """Rectangles; the first image has none, and the last rows are not annotated."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((IMAGES, MASKS, *GRID), bool)
    for image in range(1, IMAGES):
        for mask in masks[image, : 1 + image % MASKS]:
            (y, x), (h, w) = rng.integers(0, (5, 8)), rng.integers(2, 5, 2)
            mask[y : y + h, x : x + w] = True
    valid = np.ones((IMAGES, *GRID), bool)
    valid[IMAGES // 2 :, 7:] = False
    return {
        "image": np.asarray(random_images(IMAGES, seed)[0]),
        "sizes": np.array([[8, 12]] * (IMAGES - 1) + [[6, 12]], np.int32),
        "masks": masks,
        "valid": valid,
    }


@pytest.fixture(scope="module")
def params():
    return jax.jit(ModelDef(ClickedConfig()).init)(jax.random.key(0))


def reference(objective, params, batch, rng):
    """Loss and metrics with the objective's random numbers, one mask after the other."""
    config, model = objective.config, objective.context.model.bind(params)
    boxed, start, shift, clicks, idle = map(
        np.asarray, objective._draw(jax.random.split(rng)[0], (IMAGES, MASKS))
    )
    run = jax.jit(lambda p, *args: decode(objective.context.model.bind(p), *args))
    images = SQUASH.normalize(batch["image"].reshape(-1, *SIZE, 3))
    embedded = jax.jit(lambda x, s: model.embed_image(x, s))(images, batch["sizes"])
    points = np.zeros((IMAGES, MASKS, 2, 2), np.float32)
    labels = np.zeros((IMAGES, MASKS, 2), np.int32)
    present = np.ones((IMAGES, MASKS, 2), bool)
    exists = [(i, n) for i, n in np.ndindex(IMAGES, MASKS)
              if (batch["masks"][i, n] & batch["valid"][i]).any()]  # fmt: skip
    for i, n in exists:
        cells = np.argwhere(batch["masks"][i, n] & batch["valid"][i])[:, ::-1]
        x0, y0, x1, y1 = *cells.min(axis=0), *(cells.max(axis=0) + 1)
        sides = np.array([x1 - x0, y1 - y0] * 2)
        noise = np.clip(shift[i, n] * config.box_noise * sides, -20, 20)
        box = np.clip(np.array([x0, y0, x1, y1]) + noise, 0, [12, 8, 12, 8])
        point = cells[int(start[i, n] * len(cells))]
        points[i, n] = box.reshape(2, 2) if boxed[i, n] else [point, [0, 0]]
        labels[i, n] = [2, 3] if boxed[i, n] else [1, -1]
    logits, totals = None, []
    for number in range(POINTS + 3):
        if 0 < number <= POINTS + 1:
            new, kind = np.zeros((IMAGES, MASKS, 1, 2)), np.zeros((IMAGES, MASKS, 1), int)
            present = np.concatenate([present, (idle != number)[..., None]], axis=2)
            for i, n in exists:
                right, valid = batch["masks"][i, n] & batch["valid"][i], batch["valid"][i]
                wrong = ((logits[i, n] > 0) != right) & valid
                cells = np.argwhere(wrong if wrong.any() else valid)[:, ::-1]
                x, y = new[i, n, 0] = cells[int(clicks[i, n, number - 1] * len(cells))]
                kind[i, n, 0] = right[int(y), int(x)]
            points = np.concatenate([points, new], axis=2).astype(np.float32)
            labels = np.concatenate([labels, kind], axis=2).astype(np.int32)
        found, scores = map(np.float64, run(params, embedded, (points, labels, present), logits))
        logits = np.zeros((IMAGES, MASKS, *GRID), np.float32)
        for i, n in exists:
            several = number == 0 and not boxed[i, n]
            chosen = slice(1, None) if several else slice(0, 1)
            masks, score = found[i, n, chosen], scores[i, n, chosen]
            right = np.broadcast_to(batch["masks"][i, n], masks.shape)
            focal, dice, iou = mask_reference(
                masks, right, np.broadcast_to(batch["valid"][i], masks.shape)
            )
            low, best = np.argmin(20 * focal + dice), np.argmax(score)
            error = np.mean((score - iou) ** 2)
            totals.append((number, focal[low], dice[low], error, iou[best]))
            logits[i, n] = masks[best]
    totals = np.array(totals)
    focal, dice, error = totals[:, 1:4].mean(axis=0)
    return {
        "loss": 20 * focal + dice + error,
        "focal_loss": focal,
        "dice_loss": dice,
        "iou_loss": error,
        "first_iou": totals[totals[:, 0] == 0, 4].mean(),
        "last_iou": totals[totals[:, 0] == POINTS + 2, 4].mean(),
        "masks_per_image": len(exists) / IMAGES,
    }


def on_devices(params, count, remat):
    objective = sam(microbatches=(1, count), remat=remat)
    return step_on_devices(objective, params, make_batch(), count)


def test_rounds_on_eight_devices(params):
    (loss, metrics), gradients = on_devices(params, 8, "full")
    expected = reference(sam(), params, make_batch(), jax.random.key(1))
    assert expected.keys() == {"loss", *metrics}
    for name, value in {"loss": loss, **metrics}.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-4, err_msg=name)
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(gradients))


@pytest.mark.release
def test_one_device_and_no_rematerialization(params):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        on_devices(params, 8, "full"),
        on_devices(params, 1, "none"),
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"architecture": small_vit()}, "takes them, as sam_vit_b; found ViTConfig"),
        ({"box_fraction": 1.5}, "box_fraction=1.5: expected at most 1"),
        ({"points": 0}, "points=0: expected a number of at least 1"),
        ({"dice_weight": -1.0}, "dice_weight=-1.0: expected a number of at least 0"),
        ({"inputs": ImageInputs(resize="crop")}, "boxes need inputs that show the whole image"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        sam(**keys)


def test_masks_of_another_size_are_refused():
    """Of a SAM, whose masks have four cells per patch along each axis."""
    encoder = SamEncoderConfig(
        image_size=SIZE, patch_size=4, width=16, depth=2, num_heads=2, num_global=1, out_width=16
    )
    objective = sam(SamConfig(image=encoder, mask_width=4, depth=1, num_heads=2))
    model = objective.context.model
    batch = jax.tree.map(jnp.asarray, make_batch())

    coarse = {name: x[..., ::2, ::2] for name, x in batch.items() if name in ("masks", "valid")}
    with pytest.raises(UserError, match=r"predicts .8, 12.: set .*mask_stride=1"):
        jax.eval_shape(
            lambda p: objective.evaluate(model.bind(p), {**batch, **coarse})[0], model.shapes()
        )
