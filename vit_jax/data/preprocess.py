"""From a picture to the pixels a model was made for."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax.errors import UserError

RESIZES = ("crop", "squash", "pad")


def composite(image: np.ndarray, background: int | np.ndarray = 255) -> np.ndarray:
    """uint8 (H, W, 4) with straight alpha on a grey level or colour, to (H, W, 3).

    A picture without alpha is returned as it is.
    """
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.uint16)
    blended = image[..., :3] * alpha + np.asarray(background, np.uint16) * (255 - alpha) + 128
    # Exactly round(blended / 255), several times faster than a division.
    return ((blended + (blended >> 8)) >> 8).astype(np.uint8)


def preprocess(image: np.ndarray, *, size: int, resize: str) -> np.ndarray:
    """Brings a picture of any size to a square, the way it is done for evaluation.

    Args:
        image: uint8 (H, W, 3), or (H, W, 4), which is laid on white.
        size: side of the result, px.
        resize: "crop" (shortest edge to size, then the centre), "squash" (ignores the aspect
            ratio) or "pad" (longest edge to size, then white).

    Returns:
        uint8 (size, size, 3); bicubic with antialias.
    """
    if resize not in RESIZES:
        raise UserError(f"preprocess.resize={resize!r}: expected one of {', '.join(RESIZES)}")
    picture = Image.fromarray(composite(image))
    width, height = picture.size
    if resize != "squash" and width != height:
        edge = min(width, height) if resize == "crop" else max(width, height)
        width, height = (max(1, round(side * size / edge)) for side in (width, height))
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        # A box beyond the picture is filled with black, so the padding is pasted.
        canvas = Image.new("RGB", (size, size), "white")
        canvas.paste(picture, ((size - width) // 2, (size - height) // 2))
        return np.asarray(canvas)
    if (width, height) != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 (B, H, W, 3) to float32 ((x / 255) - mean) / std. On the device: a quarter to send."""
    pixels = images.astype(jnp.float32) / 255.0
    return (pixels - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
