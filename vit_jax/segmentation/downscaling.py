"""Masks of an image as prompts of a model."""

import cv2
import numpy as np
from jaxtyping import Float32

from vit_jax.inputs import ImageInputs

_LIMIT = 10.0  # logit of a pixel of a mask


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
