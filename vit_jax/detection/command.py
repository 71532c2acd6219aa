"""Detections as `vit-jax evaluate --detect` prints and draws them."""

import os
from collections.abc import Sequence
from typing import Any

from vit_jax import cli
from vit_jax.data.images import read_image
from vit_jax.detection.detect import detect
from vit_jax.detection.images import list_images
from vit_jax.detection.selection import Detections
from vit_jax.evaluators.drawing import draw_boxes, save_drawing
from vit_jax.paths import as_path
from vit_jax.pretrained.model import PretrainedModel


def run(
    detector: PretrainedModel,
    images: str,
    names: Sequence[str],
    *,
    threshold: float | None = None,
    templates: Sequence[str] = ("{}",),
    draw: str | None = None,
    as_json: bool = False,
) -> None:
    """Detects objects, draws them, and prints them on stdout.

    Args:
        detector: model.
        images: path of an image or of a folder.
        names: names to look for.
        threshold: score that a detection exceeds; None for the default of `detect`.
        templates: prompt templates, each with one `{}`.
        draw: folder for the images with their detections; None for no drawings.
        as_json: whether to print one JSON object instead of a table.

    Raises:
        UserError: see `detect`.
    """
    if draw is not None:  # a URL that cannot be written is refused now
        as_path(draw)
    result = detect(detector, images, names, threshold=threshold, templates=templates)
    found = result if isinstance(result, list) else [result]
    if draw is not None:
        _draw(detector, images, found, draw)
    if as_json:
        cli.print_json({"detections": [row for each in found for row in _rows(each)]})
        return
    for each in found:
        for row in _rows(each):
            box = " ".join(f"{side:7.1f}" for side in row["box"])
            image = f"  {each.key}" if isinstance(result, list) else ""
            print(f"{row['score']:.4f}  {box}  {row['name']}{image}")


def _rows(found: Detections) -> list[dict[str, Any]]:
    return [
        {"image": found.key, "name": name, "score": float(score), "box": box.tolist()}
        for name, score, box in zip(found.names, found.scores, found.boxes, strict=True)
    ]


def _draw(detector: PretrainedModel, images: str, found: Sequence[Detections], folder: str) -> None:
    sources = dict(zip((listed := list_images(images)).keys, listed.sources, strict=True))
    for each in found:
        pixels = read_image(sources[each.key], max_pixels=detector.max_image_pixels)
        drawing = draw_boxes(pixels, each.boxes, each.names, each.scores)
        name = os.path.basename(each.key) if listed.single else each.key
        save_drawing(folder, os.path.splitext(name)[0], drawing)
