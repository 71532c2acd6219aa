"""Images of what a model attends to, and of what it reconstructs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from vit_jax.demonstration.subject import Subject
from vit_jax.errors import UserError
from vit_jax.models.mae.drawing import draw_reconstruction
from vit_jax.models.vit.attention_maps import attention_maps, attention_rollout, patch_relevance

SIDE = 448  # px of the shorter side of a drawing, at least
Pixels = UInt8[np.ndarray, "height width 3"]
LAST, ROLLOUT = "last block", "rollout of all blocks"


def patch_attention(
    subject: Subject, pixels: Pixels, row: int, column: int, *, rollout: bool = False
) -> Float32[np.ndarray, "rows columns"]:
    """Computes which patches a patch attends to.

    Args:
        subject: model whose image tower is a ViT.
        pixels: image in the size of the model, see `Subject.input_pixels`.
        row: row of the patch.
        column: column of the patch.
        rollout: whether attention is followed through all blocks, see `attention_rollout`;
            otherwise it is that of the last block, averaged over its heads.

    Raises:
        UserError: a patch outside of the grid.
    """
    rows, columns = subject.vit.grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise UserError(f"patch {row}, {column}: expected one of {rows} rows, {columns} columns")
    last, rolled = subject.compile(_mean_maps)(subject.normalized(pixels))
    prefix = subject.vit.num_prefix
    weights = np.asarray(rolled if rollout else last)[0]
    return weights[prefix + row * columns + column, prefix:].reshape(rows, columns)


def word_relevance(
    subject: Subject, pixels: Pixels, word: str
) -> Float32[np.ndarray, "rows columns"]:
    """Computes how much each patch contributes to the similarity of image and word.

    Args:
        subject: model whose images and texts share a space, with a ViT.
        pixels: image in the size of the model, see `Subject.input_pixels`.
        word: word or phrase.

    Raises:
        UserError: no word.
    """
    if not word.strip():
        raise UserError("no word: expected a word or a phrase")
    text = subject.text_embeddings([word.strip()])[0]
    found = subject.compile(_text_relevance)(subject.normalized(pixels), text)
    return np.asarray(found)[0].reshape(subject.vit.grid)


def overlay(
    pixels: Pixels,
    heat: Float[np.ndarray, "rows columns"],
    patch: tuple[int, int] | None = None,
) -> Image.Image:
    """Draws a map over an image: bright where it is high, dark where it is low.

    Args:
        pixels: image in the size of the model.
        heat: map of patches.
        patch: row and column of a patch that gets a frame; None for none.

    Returns:
        The image, enlarged to at least `SIDE`.
    """
    image = enlarged(pixels)
    width, height = image.size
    spread = float(heat.max() - heat.min())
    scaled = (heat - heat.min()) / spread if spread else np.zeros_like(heat)
    large = Image.fromarray(np.uint8(255 * scaled)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    weight = np.asarray(large, np.float32)[..., None] / 255
    warm = np.array([255, 140, 0], np.float32)
    shown = np.asarray(image, np.float32) * 0.35
    drawn = shown + weight * (0.75 * (np.asarray(image, np.float32) - shown) + 0.25 * warm)
    if patch is not None:
        cell = height / heat.shape[0], width / heat.shape[1]
        top, left = (round(index * side) for index, side in zip(patch, cell, strict=True))
        bottom, right = round(top + cell[0]), round(left + cell[1])
        for box in ((top, top + 3), (bottom - 3, bottom)):
            drawn[slice(*box), left:right] = (0, 200, 255)
        for box in ((left, left + 3), (right - 3, right)):
            drawn[top:bottom, slice(*box)] = (0, 200, 255)
    return Image.fromarray(np.uint8(drawn.clip(0, 255)))


def enlarged(pixels: Pixels) -> Image.Image:
    """An image whose shorter side is at least `SIDE`, by a whole factor."""
    factor = max(1, -(-SIDE // min(pixels.shape[:2])))
    image = Image.fromarray(pixels)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def patch_at(subject: Subject, size: tuple[int, int], x: int, y: int) -> tuple[int, int]:
    """Row and column of the patch at a point of a drawing.

    Args:
        subject: model whose image tower is a ViT.
        size: width and height of the drawing, px.
        x: horizontal position, px.
        y: vertical position, px.
    """
    rows, columns = subject.vit.grid
    return min(y * rows // size[1], rows - 1), min(x * columns // size[0], columns - 1)


def reconstruction(
    subject: Subject, pixels: Pixels, mask_ratio: float, seed: int = 0
) -> tuple[Pixels, Pixels]:
    """Hides patches of an image and lets a masked autoencoder paint them.

    Args:
        subject: a masked autoencoder. If it predicts normalised patches, they get the mean and the
            deviation of the true ones, as in the demo of its authors.
        pixels: image in the size of the model, see `Subject.input_pixels`.
        mask_ratio: fraction of hidden patches, in [0, 1).
        seed: seed of the choice of patches.

    Returns:
        The visible patches on grey, and the same with the hidden ones painted.
    """
    rows, columns = subject.vit.grid
    noise = np.random.default_rng(seed).random((1, rows * columns), np.float32)
    # The ratio decides shapes: each value is a program of its own.
    images = subject.normalized(pixels)
    predicted, mask = subject.model.apply("reconstruct", images, noise, mask_ratio=mask_ratio)
    visible, painted = draw_reconstruction(
        predicted,
        mask,
        pixels[None],
        subject.model.spec.inputs,
        normalized=subject.normalized_pixels,
    )
    return visible[0], painted[0]


def _tower(model: Any) -> Any:
    return getattr(model, "image", model)


def _mean_maps(model: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention of the last block, and the rollout: (B, N, N) each."""
    maps = attention_maps(_tower(model), images)
    return jnp.mean(maps[-1], axis=1), attention_rollout(maps)


def _text_relevance(
    model: Any, images: Float[Array, "batch height width 3"], text: Float[Array, " dim"]
) -> Float[Array, "batch patches"]:
    def cosine(pooled: jax.Array) -> jax.Array:
        projected = model.image_projection(pooled) if model.config.image_projection else pooled
        projected = projected.astype(jnp.float32)
        return projected @ text / jnp.linalg.norm(projected, axis=-1)

    return patch_relevance(model.image, images, cosine)
