"""What a masked autoencoder sees of images, and what it makes of them."""

import math

import numpy as np
from jaxtyping import Array, Float, UInt8

from vit_jax.inputs import ImageInputs
from vit_jax.models.mae.model import patchify

Pixels = UInt8[np.ndarray, "batch height width 3"]
_GREY = np.uint8(128)  # of hidden patches


def draw_reconstruction(
    predicted: Float[Array, "batch patches values"],
    mask: Float[Array, "batch patches"],
    pixels: Pixels,
    inputs: ImageInputs,
    *,
    normalized: bool,
) -> tuple[Pixels, Pixels]:
    """Draws the result of `MAE.reconstruct` (He et al. 2022, figure 2).

    Args:
        predicted: pixels of all patches.
        mask: 1 for hidden patches.
        pixels: inputs of the model.
        inputs: preprocessing, which states their normalisation.
        normalized: whether the pixels of each patch were normalised in training. Mean and deviation
            are then those of the image's patch, as in the authors' demonstration.

    Returns:
        The visible patches on grey, and the same with the predicted ones in the place of grey.
    """
    size, side = pixels.shape[1:3], math.isqrt(predicted.shape[-1] // 3)
    values = np.asarray(predicted)
    if normalized:
        true = np.asarray(patchify(inputs.normalize(pixels), side))
        deviation = np.sqrt(true.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
        values = values * deviation + true.mean(axis=-1, keepdims=True)
    levels = unpatchify(values, size, side) * np.array(inputs.std) + np.array(inputs.mean)
    levels = np.rint(levels * 255).clip(0, 255).astype(np.uint8)
    by_value = np.broadcast_to(np.asarray(mask)[..., None], values.shape)
    hidden = unpatchify(by_value, size, side) > 0
    return np.where(hidden, _GREY, pixels), np.where(hidden, levels, pixels)


def unpatchify(
    patches: Float[np.ndarray, "batch patches values"] | Float[Array, "batch patches values"],
    size: tuple[int, int],
    patch_size: int,
) -> Float[np.ndarray, "batch height width channels"]:
    """Puts patches together to images, the inverse of `patchify`.

    Args:
        patches: values of each patch, ordered by row, column, channel.
        size: height and width of an image, px.
        patch_size: side of a patch, px.
    """
    rows, columns = size[0] // patch_size, size[1] // patch_size
    x = np.asarray(patches).reshape(len(patches), rows, columns, patch_size, patch_size, -1)
    return x.swapaxes(2, 3).reshape(len(patches), *size, -1)
