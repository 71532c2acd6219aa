"""Scenes: several drawings at random places on a background, with boxes and masks.

A scene is a pure function of its random numbers and its size.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from vit_jax.data.masks import boxes_of

MAX_DRAWINGS = 6  # default of the largest number of drawings per scene
SCALES = (0.18, 0.45)  # default range of a drawing's longer side, as a fraction of the scene's
MIN_VISIBLE = 0.4  # fraction of a drawing that others leave uncovered
_ANGLE = 30.0  # largest rotation in either direction, degrees
_REPEATED = 0.2  # probability that a drawing shows the same as an earlier one of the scene
_TRIES = 10  # places that are tried for a drawing before it is left out
_OPAQUE = 0.5  # alpha from which a pixel belongs to a drawing
_MIN_PIXELS = 9  # pixels of the smallest drawing

Drawing = UInt8[np.ndarray, "height width 4"]
Mask = Bool[np.ndarray, "side side"]
Colors = Float32[np.ndarray, "side side 3"]
Layer = Float32[np.ndarray, "side side 4"]  # premultiplied by alpha, in [0, 1]


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene.

    Attributes:
        image: the scene.
        things: what each drawing shows, from the back to the front.
        masks: pixels of each drawing that are visible: its alpha is at least 1/2, and that of all
            drawings in front of it is below.
        boxes: x0, y0, x1, y1 of each mask, px.
    """

    image: UInt8[np.ndarray, "side side 3"]
    things: tuple[int, ...]
    masks: Bool[np.ndarray, "drawings side side"]
    boxes: Float32[np.ndarray, "drawings 4"]


def draw(
    size: int,
    things: int,
    drawing: Callable[[int, np.random.Generator], Drawing],
    rng: np.random.Generator,
    *,
    max_drawings: int = MAX_DRAWINGS,
    scales: tuple[float, float] = SCALES,
) -> Scene:
    """Draws a scene.

    Args:
        size: side of the scene, px.
        things: number of things from which the drawings are chosen.
        drawing: draws a thing, given by its number; square, with alpha.
        rng: source of randomness.
        max_drawings: largest number of drawings; there is at least one.
        scales: range of a drawing's longer side, as a fraction of the scene's side.
    """
    image = _background(size, rng)
    shown: list[int] = []
    wholes: list[int] = []
    masks: list[Mask] = []
    for _ in range(int(rng.integers(1, max_drawings + 1))):
        again = rng.random() < _REPEATED and shown
        thing = shown[int(rng.integers(len(shown)))] if again else int(rng.integers(things))
        pixels = _premultiplied(drawing(thing, rng))
        for _ in range(_TRIES):
            layer = _place(pixels, size, scales, rng)
            solid = layer[..., 3] >= _OPAQUE
            visible = [mask & ~solid for mask in masks]
            if solid.sum() < _MIN_PIXELS or not _shows_enough(visible, wholes):
                continue
            image = image * (1 - layer[..., 3:]) + layer[..., :3]
            masks = [*visible, solid]
            wholes.append(int(solid.sum()))
            shown.append(thing)
            break
    stacked = np.stack(masks) if masks else np.zeros((0, size, size), np.bool_)
    pixels = np.rint(image * 255).clip(0, 255).astype(np.uint8)
    return Scene(pixels, tuple(shown), stacked, boxes_of(stacked))


def _shows_enough(visible: Sequence[Mask], wholes: Sequence[int]) -> bool:
    return all(
        mask.sum() >= MIN_VISIBLE * whole for mask, whole in zip(visible, wholes, strict=True)
    )


# --- drawings -------------------------------------------------------------------------------------


def _premultiplied(drawing: Drawing) -> Float32[np.ndarray, "height width 4"]:
    pixels = drawing.astype(np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    return pixels


def _place(
    pixels: Float32[np.ndarray, "height width 4"],
    size: int,
    scales: tuple[float, float],
    rng: np.random.Generator,
) -> Layer:
    """A drawing at a random place, scale and angle; up to a fifth of it is outside the scene."""
    low, high = scales
    side = low * (high / low) ** rng.random() * size
    angle = math.radians(rng.uniform(-_ANGLE, _ANGLE))
    x, y = rng.uniform(0.3 * side, size - 0.3 * side, 2)
    small = max(1, round(side))
    reduced = cv2.resize(pixels, (small, small), interpolation=cv2.INTER_AREA)
    cos, sin = math.cos(angle) * side / small, math.sin(angle) * side / small
    middle = (small - 1) / 2
    matrix = np.array(
        [
            [cos, -sin, x - 0.5 - (cos - sin) * middle],
            [sin, cos, y - 0.5 - (sin + cos) * middle],
        ]
    )
    return cv2.warpAffine(reduced, matrix, (size, size), flags=cv2.INTER_LINEAR)


# --- backgrounds ----------------------------------------------------------------------------------


def _background(size: int, rng: np.random.Generator) -> Colors:
    """A plain background in half of the scenes, else a texture of two colours."""
    first, second = rng.random((2, 3), dtype=np.float32)
    kind, seed = int(rng.integers(8)), int(rng.integers(2**32))
    if kind == 0:
        return np.ones((size, size, 3), np.float32)
    if kind < 4:
        return np.broadcast_to(first, (size, size, 3))
    own = np.random.default_rng(seed)
    textures = (_gradient, _stripes, _checks, _blobs)
    # Two colours that are too far apart would hide the drawings.
    second = first + (second - first) * own.uniform(0.2, 0.7)
    share = textures[kind - 4](size, own)[..., None].astype(np.float32)
    return (first + (second - first) * share).astype(np.float32)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertical and horizontal position of pixels, in [0, 1]."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[:, None], axis[None, :]


def _waves(size: int, rng: np.random.Generator) -> np.ndarray:
    """Phase of waves across the scene, in periods."""
    y, x = _grid(size)
    angle, periods = rng.uniform(0, math.pi), rng.uniform(3, 12)
    return (math.cos(angle) * x + math.sin(angle) * y) * periods + rng.random()


def _gradient(size: int, rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    return 0.5 + (math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5)) * 0.7


def _stripes(size: int, rng: np.random.Generator) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(2 * math.pi * _waves(size, rng))


def _checks(size: int, rng: np.random.Generator) -> np.ndarray:
    return (np.floor(_waves(size, rng)) + np.floor(_waves(size, rng))) % 2


def _blobs(size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of a random scale, smoothly interpolated."""
    count = int(rng.integers(3, 17))
    coarse = rng.random((count, count), dtype=np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)
