"""Masks as `vit-jax evaluate --segment` prints, writes and draws them."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from vit_jax import cli
from vit_jax.data.images import read_image
from vit_jax.detection.images import list_images
from vit_jax.evaluators.drawing import draw_masks, save_drawing
from vit_jax.paths import as_path
from vit_jax.pretrained.model import PretrainedModel
from vit_jax.segmentation.results import Segmentation
from vit_jax.segmentation.segment import segment


def run(
    model: PretrainedModel,
    images: str,
    names: Sequence[str],
    *,
    detector: PretrainedModel | None = None,
    threshold: float | None = None,
    draw: str | None = None,
    as_json: bool = False,
) -> None:
    """Finds masks by words, writes and draws them, and prints a table on stdout.

    Args:
        model: model.
        images: path of an image or of a folder.
        names: names to look for.
        detector: model that finds boxes by names, for SAM.
        threshold: score that a box or a mask exceeds; None for the default of the model.
        draw: folder for the images with their masks, as `street.png`, and for the masks, as
            `street/0.png`, white on black; None for none.
        as_json: whether to print one JSON object instead of a table.

    Raises:
        UserError: see `segment`.
    """
    if draw is not None:  # a URL that cannot be written is refused now
        as_path(draw)
    result = segment(model, images, names, detector=detector, threshold=threshold)
    found = result if isinstance(result, list) else [result]
    if draw is not None:
        _draw(model, images, found, draw)
    if as_json:
        cli.print_json({"masks": [row for each in found for row in _rows(each)]})
        return
    for each in found:
        for row in _rows(each):
            box = " ".join(f"{side:6.0f}" for side in row["box"])
            image = f"  {each.key}" if isinstance(result, list) else ""
            print(f"{row['score']:.4f}  {row['pixels']:9d} px  {box}  {row['name']}{image}")


def _rows(found: Segmentation) -> Iterator[dict[str, Any]]:
    columns = zip(found.names, found.scores, found.masks, found.boxes, strict=True)
    for name, score, mask, box in columns:
        yield {
            "image": found.key,
            "name": name,
            "score": float(score),
            "pixels": int(mask.sum()),
            "box": box.tolist(),
        }


def _draw(model: PretrainedModel, images: str, found: Sequence[Segmentation], folder: str) -> None:
    sources = dict(zip((listed := list_images(images)).keys, listed.sources, strict=True))
    for each in found:
        pixels = read_image(sources[each.key], max_pixels=model.max_image_pixels)
        name = os.path.splitext(os.path.basename(each.key) if listed.single else each.key)[0]
        drawing = draw_masks(pixels, each.masks, each.boxes, each.names, each.scores)
        save_drawing(folder, name, drawing)
        for number, mask in enumerate(each.masks):
            save_drawing(folder, f"{name}/{number}", Image.fromarray(mask))
