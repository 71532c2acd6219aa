"""Contrastive losses and their gradients in float64 NumPy, derived by hand."""

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


class Expected(NamedTuple):
    """A loss, its gradients, and retrieval accuracies."""

    loss: float
    image: Array
    text: Array
    scale: float
    bias: float
    image_to_text_accuracy: float
    text_to_image_accuracy: float


def contrastive(image: Array, text: Array, scale: float, bias: float, loss: str) -> Expected:
    """Softmax (Radford et al. 2021, fig. 3) or sigmoid loss (Zhai et al. 2023, eq. 1).

    With z = scale * image @ text.T + bias, everything follows from the slope dL/dz:
    dL/dimage = scale * slope @ text, dL/dtext = scale * slope.T @ image,
    dL/dscale = sum(slope * image @ text.T), dL/dbias = sum(slope).
    """
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    batch = len(image)
    cosine = image @ text.T
    logits = scale * cosine + bias
    own = np.eye(batch)
    if loss == "softmax":
        by_row, by_column = log_softmax(logits), log_softmax(logits.T).T
        value = -(np.diag(by_row) + np.diag(by_column)).mean() / 2
        slope = (np.exp(by_row) + np.exp(by_column) - 2 * own) / (2 * batch)
    else:
        sign = 2 * own - 1
        value = np.logaddexp(0, -sign * logits).sum() / batch
        slope = -sign / (1 + np.exp(sign * logits)) / batch
    rivals = np.where(own, -np.inf, logits)
    return Expected(
        loss=float(value),
        image=scale * slope @ text,
        text=scale * slope.T @ image,
        scale=float((slope * cosine).sum()),
        bias=float(slope.sum()) if loss == "sigmoid" else 0.0,
        image_to_text_accuracy=float((np.diag(logits) > rivals.max(1)).mean()),
        text_to_image_accuracy=float((np.diag(logits) > rivals.max(0)).mean()),
    )


def log_softmax(logits: Array) -> Array:
    """Log-softmax along each row."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
