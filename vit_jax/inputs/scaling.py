"""Scaling of pixels for `ImageInputs`."""

import math

import cv2
import numpy as np
from jaxtyping import UInt8


def corner(
    image: UInt8[np.ndarray, "_ _ 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Pads an image to a square and scales it (Minderer et al. 2023; scenic, projects/owl_vit).

    The filters are those of transformers' Owlv2ImageProcessor, which resizes floating-point pixels.
    """
    side = max(image.shape[:2])
    square = np.zeros((side, side, 3), np.float32)
    square[: image.shape[0], : image.shape[1]] = image
    sigmas = [max(0.0, (side / new - 1) / 2) for new in size]
    if all(sigmas):
        down, across = (cv2.getGaussianKernel(2 * math.ceil(3 * s) + 1, s) for s in sigmas)
        square = cv2.sepFilter2D(square, -1, across, down, borderType=cv2.BORDER_REFLECT_101)
    resized = cv2.resize(square, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.rint(resized).clip(0, 255).astype(np.uint8)


def source_of(whole: int, scaled: int, start: int, size: int) -> tuple[int, int, float, float]:
    """The pixels of one axis from which a part of the scaled axis is interpolated.

    Args:
        whole: length of the axis.
        scaled: its length after scaling.
        start: first pixel of the part, after scaling.
        size: length of the part, after scaling.

    Returns:
        First pixel and end of the source, with a margin for the filter, and start and end of the
        part within it.
    """
    scale = whole / scaled
    begin, end = start * scale, min(whole, (start + size) * scale)
    margin = math.ceil(2 * max(1, scale)) + 1  # the bicubic filter has the largest support, 2 px
    first = max(0, math.floor(begin) - margin)
    return first, min(whole, math.ceil(end) + margin), begin - first, end - first


def composite(
    image: UInt8[np.ndarray, "height width channels"], background: int | np.ndarray = 255
) -> UInt8[np.ndarray, "height width 3"]:
    """Composites an image with straight alpha on a background.

    Args:
        image: uint8 (H, W, 4); an image (H, W, 3) is returned unchanged.
        background: grey level or colour.
    """
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.uint16)
    blended = image[..., :3] * alpha + np.asarray(background, np.uint16) * (255 - alpha) + 128
    # Equals round(blended / 255) and is several times faster than a division.
    return ((blended + (blended >> 8)) >> 8).astype(np.uint8)
