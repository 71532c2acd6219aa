"""Drawings of what detectors and segmenters find."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax.demonstration.subject import Subject
from vit_jax.detection.detect import detect
from vit_jax.evaluators.drawing import draw_boxes, draw_masks
from vit_jax.segmentation.sam_runner import EmbeddedImage
from vit_jax.segmentation.segment import segment

Pixels = UInt8[np.ndarray, "height width 3"]


def boxes_by_words(
    subject: Subject, image: Any, words: Sequence[str], threshold: float
) -> tuple[Image.Image, int]:
    """Draws the boxes of words.

    Args:
        subject: model that finds boxes, or whose detector does.
        image: image of any kind, see `read_image`.
        words: names or phrases.
        threshold: score that a box exceeds.

    Returns:
        The drawing, and the number of boxes.
    """
    pixels, detector = subject.pixels(image), subject.boxes_model
    assert detector is not None
    found = detect(detector, pixels, words, threshold=threshold)
    assert not isinstance(found, list)
    return draw_boxes(pixels, found.boxes, found.names, found.scores), len(found.boxes)


def masks_by_words(
    subject: Subject, image: Any, words: Sequence[str], threshold: float
) -> tuple[Image.Image, int]:
    """Draws the masks of words.

    Args:
        subject: model that finds masks by words, or by the boxes of its detector.
        image: image of any kind, see `read_image`.
        words: names or phrases.
        threshold: score that a box, or without a detector the probability that a pixel exceeds.

    Returns:
        The drawing, and the number of masks.
    """
    pixels = subject.pixels(image)
    detector = subject.boxes_model if subject.segments_clicks else None
    found = segment(subject.model, pixels, words, detector=detector, threshold=threshold)
    assert not isinstance(found, list)
    drawn = draw_masks(pixels, found.masks, found.boxes, found.names, found.scores)
    return drawn, len(found.masks)


def masks_by_clicks(
    subject: Subject,
    pixels: Pixels,
    features: EmbeddedImage,
    points: Sequence[tuple[int, int, int]],
) -> tuple[Pixels, str]:
    """Draws the mask that points select.

    Args:
        subject: model that takes points.
        pixels: image, uint8 (H, W, 3).
        features: features of the image, see `embed_image`.
        points: x, y, and 1 for a point of the object, 0 for one of the background.

    Returns:
        The drawing in the pixels of the image, and a sentence.
    """
    places = [[point[:2] for point in points]]
    labels = [[point[2] for point in points]]
    found = segment(subject.model, features, points=places, labels=labels)
    assert not isinstance(found, list)
    drawn = pixels.copy()
    drawn[found.masks[0]] = drawn[found.masks[0]] // 2 + (127, 70, 0)
    size = max(2, max(pixels.shape) // 100)
    for x, y, of_object in points:
        area = slice(max(y - size, 0), y + size + 1), slice(max(x - size, 0), x + size + 1)
        drawn[area] = (0, 200, 0) if of_object else (220, 0, 0)
    share = found.masks[0].mean()
    return drawn, f"{share:.1%} of the image; predicted IoU {found.scores[0]:.2f}."
