"""Classification of given boxes by words.

model = vit_jax.create_model("regionclip_rn50", weights="regionclip_pretrained-cc_rn50.pth")
found = vit_jax.classify_boxes(model, "street.jpg", [[12, 30, 200, 160]], ["a red car", "a cat"])
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vit_jax.data.images import read_image
from vit_jax.data.sources import coco_file
from vit_jax.data.sources.boxes import box_array
from vit_jax.data.sources.listing import LeftOut
from vit_jax.detection import selection
from vit_jax.detection.images import Images, list_images
from vit_jax.detection.results import (
    Results,
    check_fractions,
    check_names,
    check_output,
)
from vit_jax.detection.runner import EmbeddingRunner
from vit_jax.detection.runners import box_runner_of
from vit_jax.detection.selection import Detections
from vit_jax.errors import UserError
from vit_jax.evaluators import prompts
from vit_jax.evaluators.batching import padded_batches, progress_bar
from vit_jax.evaluators.embedding import check_positive
from vit_jax.evaluators.regions import in_parts, join_parts, relative_boxes
from vit_jax.paths import StrPath
from vit_jax.pretrained.model import PretrainedModel

_MOST = 128  # boxes of an image that are classified at once


def classify_boxes(
    model: PretrainedModel,
    images: Any,
    boxes: Any,
    names: Sequence[str],
    *,
    threshold: float = 0.0,
    templates: str | Sequence[str] = ("{}",),
    nms_threshold: float = 1.0,
    batch_size: int = 8,
    output: StrPath | None = None,
) -> Detections | list[Detections]:
    """Classifies given boxes by names.

    Args:
        model: model from `create_model` that classifies boxes, as regionclip_rn50.
        images: an image, a list of images, or a folder, see `vit_jax.detect`.
        boxes: boxes of the images, any of
            an array (n, 4) of x0, y0, x1, y1 in pixels, or `Detections` of any detector, or for
            several images a list of them in the order of the images;
            for a folder or a list of paths, a list of `Detections` of `vit_jax.detect`, or the path
            of a file in COCO's JSON. Images that are not among them are left out and counted.
        names: names or phrases. The first of equal names counts.
        threshold: score that a box exceeds.
        templates: see `vit_jax.detect`.
        nms_threshold: IoU above which the lower score of two boxes of a name is left out; 1 for
            none.
        batch_size: images per batch.
        output: file for the detections in COCO's JSON.

    Returns:
        The boxes of the image with their most probable names, from the highest score to the lowest;
        for a list or a folder those of each image. A score is a probability; the rest to 1 is that
        of the other names and of the background.

    Raises:
        UserError: another kind of model; boxes that are not those of the images; an image that
            cannot be read; an argument outside its range.

    Example:
        >>> import numpy as np, vit_jax
        >>> image = {"image_size": 64, "depths": (1, 1, 1, 1), "width": 8, "num_heads": 2}
        >>> text = {"width": 8, "depth": 1, "num_heads": 1, "mlp_dim": 8}
        >>> sizes = {"image": {**image, "embed_dim": 16}, "text": text, "embed_dim": 16}
        >>> model = vit_jax.create_model("regionclip_rn50", **sizes)
        >>> pixels = np.zeros((40, 60, 3), np.uint8)
        >>> classify_boxes(model, pixels, [[0, 0, 20, 20]], ["a cat", "a dog"]).boxes.shape
        (1, 4)
    """
    runner = box_runner_of(model)
    check_positive(batch_size, "batch_size")
    check_fractions(threshold=threshold, nms_threshold=nms_threshold)
    model.spec.inputs.extent(1, 1)  # before any image is read
    listed, classes = list_images(images), check_names(names)
    check_output(output, listed)
    given = _boxes_of(listed, boxes)
    queries = runner.embed_classes(model, classes, prompts.templates(templates))
    results = Results(listed, names, classes)
    with progress_bar("classify", total=len(given)) as bar:
        for row, (height, width), scores, best in _classify(
            model, runner, listed, given, queries, batch_size
        ):
            all_boxes = selection.Boxes(given[row], scores, best)
            results.add(row, height, width, selection.select(all_boxes, threshold, nms_threshold))
            bar.update()
    return results.finish(output)


def _classify(
    model: PretrainedModel,
    runner: EmbeddingRunner,
    listed: Images,
    given: dict[int, np.ndarray],
    queries: np.ndarray,
    batch_size: int,
) -> Iterator[tuple[int, tuple[int, int], np.ndarray, np.ndarray]]:
    """Yields row, size, scores and classes of each image, in their order."""
    inputs, rows = model.spec.inputs, list(given)
    most = max(map(len, given.values()))
    count = min(_MOST, 1 << max(0, most - 1).bit_length())
    # An image without boxes is read as well, for its size.
    parts = in_parts([max(1, len(boxes)) for boxes in given.values()], count)

    def read(index: int) -> dict[str, np.ndarray]:
        position, start, stop = parts[index]
        row = rows[position]
        pixels = read_image(
            listed.sources[row], listed.name(row), max_pixels=model.max_image_pixels
        )
        extent = inputs.extent(*pixels.shape[:2])
        return {
            "image": inputs.pack(inputs(pixels)),
            "boxes": relative_boxes(given[row][start:stop], extent, count),
            "size": np.asarray(pixels.shape[:2]),
        }

    def outputs() -> Iterator[tuple[np.ndarray, ...]]:
        size = min(batch_size, len(parts))
        for batch in padded_batches(
            read, start=0, stop=len(parts), batch_size=size, part=range(size)
        ):
            found = runner.classes_of_boxes(model, batch["image"], batch["boxes"], queries)
            yield from zip(*found, batch["size"][:, None], strict=True)

    for position, (scores, labels, shape) in join_parts(parts, outputs()):
        row = rows[position]
        height, width = map(int, shape[0])
        number = len(given[row])
        yield row, (height, width), scores[:number], labels[:number]


def _boxes_of(listed: Images, boxes: Any) -> dict[int, np.ndarray]:
    """Boxes by the row of their image, x0, y0, x1, y1 in px."""
    several = [boxes] if listed.single else boxes
    if isinstance(boxes, str | os.PathLike):
        found = _by_key(listed, _read_coco(os.fspath(boxes)), os.fspath(boxes))
    elif not listed.single and all(isinstance(each, Detections) and each.key for each in several):
        found = _by_key(listed, {each.key: each.boxes for each in several}, "boxes")
    else:
        if len(several) != len(listed.sources):
            raise UserError(
                f"boxes: expected those of {len(listed.sources)} images; found {len(several)}"
            )
        found = dict(enumerate(several))
    return {row: _checked(each, listed.name(row)) for row, each in found.items()}


def _by_key(listed: Images, by_key: dict[str, Any], place: str) -> dict[int, Any]:
    found = {row: by_key[key] for row, key in enumerate(listed.keys) if key in by_key}
    if not found:
        raise UserError(
            f"{place}: expected boxes of {listed.keys[0]!r} and other images; found those of "
            f"{next(iter(by_key), 'none')!r}"
        )
    left_out = LeftOut()
    for row in range(len(listed.keys)):
        if row not in found:
            left_out.add("images without boxes", listed.name(row))
    left_out.log(place)
    return found


def _read_coco(place: str) -> dict[str, np.ndarray]:
    content = coco_file.load(place)
    _, classes = coco_file.read_classes(content["categories"], place)
    images = coco_file.read_images(content["images"], place)
    annotations = coco_file.Annotations(images, classes, place)
    annotations.add(content["annotations"])
    rows = annotations.rows([each.files[0] for each in images.values()])
    return {row["file"]: box_array(row["boxes"]) for row in rows}


def _checked(boxes: Any, name: str) -> np.ndarray:
    values = boxes.boxes if isinstance(boxes, Detections) else boxes
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        array = np.zeros((), np.float32)
    array = array.reshape(0, 4) if array.shape == (0,) else array
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
        raise UserError(
            f"boxes of image {name}: expected finite numbers (n, 4), x0, y0, x1, y1 in pixels; "
            f"found {array.shape}"
        )
    return array
