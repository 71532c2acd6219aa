"""Masks of a model in pixels of the image."""

import cv2
import numpy as np
from jaxtyping import Float32

from vit_jax.inputs import ImageInputs

Logits = Float32[np.ndarray, "rows columns"]
_LIMIT = 10.0  # logit of a pixel of a mask


def upscale(
    logits: Logits, inputs: ImageInputs, height: int, width: int
) -> Float32[np.ndarray, "height width"]:
    """Interpolates logits to the pixels of an image, as transformers' `post_process_masks`.

    They are enlarged to the model's input, cut to the part that is not padding, and resized to the
    image. Both steps are bilinear without antialias.

    Args:
        logits: logits of a mask in the model's input (h, w).
        inputs: preprocessing of the model.
        height: height of the image, px.
        width: width of the image, px.
    """
    rows, columns = inputs.scaled_size(height, width)
    whole = cv2.resize(logits, inputs.size[::-1], interpolation=cv2.INTER_LINEAR)
    part = np.ascontiguousarray(whole[:rows, :columns])
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)


def downscale(
    mask: np.ndarray, inputs: ImageInputs, size: tuple[int, int]
) -> Float32[np.ndarray, "rows columns"]:
    """Converts a mask of an image to logits, which a model takes as a prompt.

    Args:
        mask: pixels, bool (H, W).
        inputs: preprocessing of the model.
        size: height and width of the logits of the model's input.

    Returns:
        float32 logits between -10 and 10, the latter where all pixels belong to the mask; padding
        does not belong to it.
    """
    scaled = inputs.scaled_size(*mask.shape)
    rows, columns = (
        max(1, round(part * new / whole))
        for part, new, whole in zip(scaled, size, inputs.size, strict=True)
    )
    fractions = np.zeros(size, np.float32)
    small = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    fractions[:rows, :columns] = small
    return (2 * fractions - 1) * np.float32(_LIMIT)
