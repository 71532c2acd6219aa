"""Detections and masks drawn onto an image."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vit_jax.inputs import composite
from vit_jax.paths import StrPath, as_path

_SMALLEST = 512  # px: images with a shorter longer side are enlarged, so that words can be read
_MARGIN = 32  # px around a box that is cut out
_GOLDEN = 0.618034  # steps of the hue after which neighbours differ


def draw_boxes(
    image: UInt8[np.ndarray, "height width channels"],
    boxes: Float[np.ndarray, "n 4"],
    names: Sequence[str],
    scores: Float[np.ndarray, " n"],
) -> Image.Image:
    """Draws boxes with their names and scores, the highest score on top.

    Args:
        image: uint8 (H, W, 3) or (H, W, 4), whose alpha is composited on white.
        boxes: x0, y0, x1, y1 in pixels of the image; parts outside of it are not drawn.
        names: name of each box. Boxes of equal names have the same colour.
        scores: score of each box.

    Returns:
        The image, enlarged by a whole number if it is small.
    """
    canvas = Image.fromarray(composite(image))
    factor = max(1, math.ceil(_SMALLEST / max(canvas.size)))
    canvas = canvas.resize(
        (canvas.width * factor, canvas.height * factor), Image.Resampling.NEAREST
    )
    side = max(canvas.size)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(12, side // 50))
    width = max(2, side // 300)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    scaled = np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:], boxes[:, :2])], axis=1) * factor
    order = np.argsort(scores, kind="stable").tolist()
    for i in order:
        draw.rectangle(scaled[i].tolist(), outline=_color(numbers[names[i]]), width=width)
    for i in order:
        x0, y0 = scaled[i, :2].tolist()
        text = f"{names[i]} {scores[i]:.2f}"
        left, _, right, bottom = draw.textbbox((0, 0), text, font=font)
        x = min(max(x0, 0), max(canvas.width - right, 0))
        y = y0 - bottom if y0 >= bottom else max(y0, 0)
        draw.rectangle((x + left, y, x + right, y + bottom), fill=_color(numbers[names[i]]))
        draw.text((x, y), text, fill="black", font=font)
    return canvas


def draw_part(
    image: UInt8[np.ndarray, "height width channels"], box: Float[np.ndarray, "4"]
) -> Image.Image:
    """Draws a box onto the part of an image around it.

    Args:
        image: uint8 (H, W, 3) or (H, W, 4), whose alpha is composited on white.
        box: x0, y0, x1, y1 in pixels of the image.

    Returns:
        The box with half its sides around it, at least 32 px, where the image has them.
    """
    canvas = Image.fromarray(composite(image))
    x0, y0, x1, y1 = np.clip(box, 0, [canvas.width, canvas.height] * 2).tolist()
    margin = max(x1 - x0, y1 - y0, 2 * _MARGIN) / 2
    part = (
        max(0, math.floor(x0 - margin)),
        max(0, math.floor(y0 - margin)),
        min(canvas.width, math.ceil(x1 + margin)),
        min(canvas.height, math.ceil(y1 + margin)),
    )
    cut = canvas.crop(part)
    inside = [x0 - part[0], y0 - part[1], max(x0, x1) - part[0], max(y0, y1) - part[1]]
    ImageDraw.Draw(cut).rectangle(inside, outline=_color(0), width=max(1, max(cut.size) // 60))
    return cut


def draw_masks(
    image: UInt8[np.ndarray, "height width channels"],
    masks: Bool[np.ndarray, "n height width"],
    boxes: Float[np.ndarray, "n 4"],
    names: Sequence[str],
    scores: Float[np.ndarray, " n"],
) -> Image.Image:
    """Draws masks, half transparent, with their boxes, names and scores.

    Args:
        image: uint8 (H, W, 3) or (H, W, 4), whose alpha is composited on white.
        masks: pixels of each mask.
        boxes: x0, y0, x1, y1 in pixels of the image.
        names: name of each mask. Masks of equal names have the same colour.
        scores: score of each mask; the highest one is drawn on top.

    Returns:
        See `draw_boxes`.
    """
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    order = np.argsort(scores, kind="stable").tolist()
    painted = paint_masks(image, [masks[i] for i in order], [numbers[names[i]] for i in order])
    return draw_boxes(painted, boxes, names, scores)


def paint_masks(
    image: UInt8[np.ndarray, "height width channels"],
    masks: Sequence[Bool[np.ndarray, "height width"]],
    colors: Sequence[int],
) -> UInt8[np.ndarray, "height width 3"]:
    """Paints masks onto an image, half transparent.

    Args:
        image: uint8 (H, W, 3) or (H, W, 4), whose alpha is composited on white.
        masks: pixels of each mask; the last one is on top.
        colors: number of the colour of each mask.
    """
    canvas = composite(image).copy()
    for mask, number in zip(masks, colors, strict=True):
        canvas[mask] = (canvas[mask] + np.array(_color(number), np.uint16)) // 2
    return canvas


def outline_boxes(
    image: UInt8[np.ndarray, "height width channels"], boxes: Float[np.ndarray, "n 4"]
) -> Image.Image:
    """Draws boxes without words, with lines that are seen in a thumbnail.

    Args:
        image: uint8 (H, W, 3) or (H, W, 4), whose alpha is composited on white.
        boxes: x0, y0, x1, y1 in pixels of the image; parts outside of it are not drawn.
    """
    canvas = Image.fromarray(composite(image))
    for x0, y0, x1, y1 in boxes.tolist():
        sides = [x0, y0, max(x0, x1), max(y0, y1)]
        width = max(1, max(canvas.size) // 60)
        ImageDraw.Draw(canvas).rectangle(sides, outline=_color(0), width=width)
    return canvas


def save_drawing(folder: StrPath, name: str, drawing: Image.Image) -> None:
    """Writes a drawing as PNG.

    Args:
        folder: folder, local or in a bucket; it is created.
        name: name of the file without suffix; it may have folders.
        drawing: image.
    """
    path = as_path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        drawing.save(file, "PNG")


def _color(number: int) -> tuple[int, ...]:
    """A bright colour, on which black text can be read."""
    return tuple(
        round(255 * value) for value in colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.6, 1.0)
    )
