"""Average precision of detections (Lin et al. 2014, COCO; Gupta et al. 2019, LVIS).

Detections are matched and accumulated by faster-coco-eval.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vit_jax.errors import MissingPackageError

AREAS = ("all", "small", "medium", "large")
"""Sizes of objects: up to 32^2 px, up to 96^2 px, and larger."""

_IOU_50, _IOU_75 = 0, 5  # positions among the thresholds 0.5, 0.55, ..., 0.95


@dataclasses.dataclass(frozen=True)
class Annotated:
    """Objects of an image.

    Attributes:
        boxes: x0, y0, x1, y1 in pixels of the image.
        classes: class of each box.
        crowd: whether each box surrounds a group: detections in it count neither way.
        areas: area of each object, px^2, which may be smaller than that of its box.
        absent: classes that are verified to be absent; None where all objects are annotated.
        not_exhaustive: classes of which some objects have no box.
        masks: run lengths of each object, see `data.masks.encode_mask`; None to compare boxes.
    """

    boxes: Float[np.ndarray, "n 4"]
    classes: Int[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]
    absent: tuple[int, ...] | None = None
    not_exhaustive: tuple[int, ...] = ()
    masks: Sequence[dict[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Detected:
    """Detections in an image.

    Attributes:
        boxes: x0, y0, x1, y1 in pixels of the image.
        classes: class of each box.
        scores: score of each box.
        masks: run lengths of each object; None to compare boxes.
    """

    boxes: Float[np.ndarray, "n 4"]
    classes: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    masks: Sequence[dict[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Curves:
    """Precision and recall of all classes; -1 for a class without objects.

    Attributes:
        precision: by IoU threshold, recall (0, 0.01, ..., 1), class, area and number of detections.
        recall: highest recall by IoU threshold, class, area and number of detections.
        counts: numbers of detections per image and class.
    """

    precision: Float[np.ndarray, "thresholds recalls classes areas counts"]
    recall: Float[np.ndarray, "thresholds classes areas counts"]
    counts: tuple[int, ...]


def require_package() -> None:
    """Checks that faster-coco-eval is installed.

    Raises:
        MissingPackageError: it is not.
    """
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise MissingPackageError(
            "average precision needs the package faster-coco-eval: pip install 'vit_jax[detection]'"
        )


def compute_curves(
    annotated: Sequence[Annotated],
    detected: Sequence[Detected],
    num_classes: int,
    *,
    counts: Sequence[int] = (1, 10, 100),
    federated: bool = False,
) -> Curves:
    """Matches detections with objects at IoU thresholds from 0.5 to 0.95.

    The overlap is that of masks where all images have them, else that of boxes.

    Args:
        annotated: objects of each image.
        detected: detections in each image.
        num_classes: number of classes.
        counts: numbers of detections per image and class, in ascending order.
        federated: LVIS's rules: detections of classes that an image is not annotated for are left
            out, and unmatched ones of classes that are not exhaustively annotated are ignored.

    Raises:
        MissingPackageError: faster-coco-eval is not installed.
    """
    evaluation = _evaluation(annotated, detected, num_classes, lvis_style=federated)
    evaluation.params.maxDets = list(counts)
    evaluation.evaluate()
    evaluation.accumulate()
    return Curves(evaluation.eval["precision"], evaluation.eval["recall"], tuple(counts))


def match(
    annotated: Sequence[Annotated], detected: Sequence[Detected], num_classes: int
) -> tuple[Int[np.ndarray, " detections"], Float[np.ndarray, " detections"]]:
    """Matches detections with objects of their class at an IoU of 0.5.

    Args:
        annotated: objects of each image.
        detected: detections in each image.
        num_classes: number of classes.

    Returns:
        For the detections of all images, one after the other: the matched object among those of all
        images, or -1, and the IoU with it, or 0.

    Raises:
        MissingPackageError: faster-coco-eval is not installed.
    """
    evaluation = _evaluation(annotated, detected, num_classes, extra_calc=True)
    params = evaluation.params
    params.iouThrs = np.array([0.5])
    params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
    params.maxDets = [max((len(image.scores) for image in detected), default=0)]
    evaluation.evaluate()
    evaluation.accumulate()
    count = sum(len(image.scores) for image in detected)
    objects, overlaps = np.full(count, -1), np.zeros(count)
    for pair, overlap in evaluation.eval["matched"].items():
        detection, matched = map(int, pair.split("_"))  # ids count from 1
        objects[detection - 1], overlaps[detection - 1] = matched - 1, overlap
    return objects, overlaps


def _evaluation(
    annotated: Sequence[Annotated], detected: Sequence[Detected], num_classes: int, **options: Any
) -> Any:
    require_package()
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(_coco_json(annotated, num_classes))
    found = truth.loadRes(_coco_results(detected))
    images: tuple[Annotated | Detected, ...] = (*annotated, *detected)
    kind = "segm" if all(image.masks is not None for image in images) else "bbox"
    return COCOeval_faster(truth, found, iouType=kind, print_function=_ignore, **options)


def average_precision(
    curves: Curves,
    classes: Sequence[int] | None = None,
    area: str = "all",
    iou: float | None = None,
) -> float:
    """Mean over classes, recalls and IoU thresholds of the precision.

    Args:
        curves: result of `compute_curves`.
        classes: classes that count; None for all.
        area: size of the objects that count, of `AREAS`.
        iou: 0.5 or 0.75 for one IoU threshold; None for all.

    Returns:
        A fraction; -1 if no object counts.
    """
    precision = curves.precision[:, :, :, AREAS.index(area), -1]
    if iou is not None:
        precision = precision[[{0.5: _IOU_50, 0.75: _IOU_75}[iou]]]
    return _mean(precision if classes is None else precision[:, :, list(classes)])


def average_recall(
    curves: Curves, classes: Sequence[int] | None = None, area: str = "all", count: int = -1
) -> float:
    """Mean over classes and IoU thresholds of the highest recall.

    Args:
        curves: result of `compute_curves`.
        classes: classes that count; None for all.
        area: size of the objects that count, of `AREAS`.
        count: number of detections per image and class, of `curves.counts`; -1 for the largest.

    Returns:
        A fraction; -1 if no object counts.
    """
    position = -1 if count == -1 else curves.counts.index(count)
    recall = curves.recall[:, :, AREAS.index(area), position]
    return _mean(recall if classes is None else recall[:, list(classes)])


def precision_by_recall(curves: Curves) -> dict[str, Float[np.ndarray, " recalls"]]:
    """Mean precision of the classes with objects at each recall 0, 0.01, ..., 1.

    Args:
        curves: result of `compute_curves`.

    Returns:
        `recall`, and float32 `precision` over all IoU thresholds, `precision_50` and
        `precision_75`; empty where there are no objects.
    """
    by_class = curves.precision[:, :, :, 0, -1]
    found = by_class[:, :, (by_class > -1).all(axis=(0, 1))]
    count = found.shape[1] if found.shape[2] else 0
    mean = found.mean(axis=2) if count else np.zeros((len(found), 0))
    return {
        "recall": np.linspace(0, 1, found.shape[1])[:count],
        "precision": mean.mean(axis=0).astype(np.float32),
        "precision_50": mean[_IOU_50].astype(np.float32),
        "precision_75": mean[_IOU_75].astype(np.float32),
    }


def _mean(values: np.ndarray) -> float:
    counted = values[values > -1]
    return float(np.mean(counted)) if counted.size else -1.0


def _ignore(*_: Any) -> None:
    """Takes the place of `print`."""


def _coco_json(annotated: Sequence[Annotated], num_classes: int) -> dict[str, list]:
    """Ground truth in COCO's form. Ids count from 1: 0 stands for no match."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(annotated, start=1):
        height, width = image.masks[0]["size"] if image.masks else (0, 0)
        images.append(
            {
                "id": number,
                "height": height,
                "width": width,
                "neg_category_ids": [i + 1 for i in image.absent or ()],
                "not_exhaustive_category_ids": [i + 1 for i in image.not_exhaustive],
            }
        )
        for shape, label, crowd, area in zip(
            _shapes(image),
            image.classes.tolist(),
            image.crowd.tolist(),
            image.areas.tolist(),
            strict=True,
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    **shape,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    # The frequency is a key that LVIS's rules require; no metric here reads it.
    categories = [{"id": i + 1, "name": str(i), "frequency": "f"} for i in range(num_classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _coco_results(detected: Sequence[Detected]) -> list[dict[str, Any]]:
    return [
        {"image_id": number, "category_id": label + 1, **shape, "score": score}
        for number, image in enumerate(detected, start=1)
        for shape, label, score in zip(
            _shapes(image), image.classes.tolist(), image.scores.tolist(), strict=True
        )
    ]


def _shapes(image: Annotated | Detected) -> list[dict[str, Any]]:
    """What is compared: the masks of an image, or its boxes."""
    if image.masks is not None:
        return [{"segmentation": mask} for mask in image.masks]
    return [{"bbox": box} for box in _xywh(image.boxes)]


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    wide = boxes.astype(np.float64)
    return np.concatenate([wide[:, :2], wide[:, 2:] - wide[:, :2]], axis=1).tolist()
