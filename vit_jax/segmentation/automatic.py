"""Masks of all objects of an image (Kirillov et al. 2023, appendix B).

sam = vit_jax.create_model("sam_vit_b", weights="sam_vit_b.safetensors")
found = vit_jax.generate_masks(sam, "street.jpg", crop_layers=1)
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float32

from vit_jax.data.images import read_image
from vit_jax.detection.images import Window, list_images
from vit_jax.detection.results import check_fractions
from vit_jax.detection.selection import Boxes, join, not_suppressed
from vit_jax.errors import UserError
from vit_jax.evaluators.batching import progress_bar
from vit_jax.evaluators.embedding import check_positive
from vit_jax.models.sam.prompts import FOREGROUND, NO_POINT
from vit_jax.pretrained.model import PretrainedModel
from vit_jax.segmentation.crops import crop_windows, point_grid
from vit_jax.segmentation.prompts import Prompts
from vit_jax.segmentation.results import Mask, Segmentation, box_around
from vit_jax.segmentation.runners import prompt_runner_of
from vit_jax.segmentation.sam_runner import SamRunner

_EDGE = 20.0  # distance at which a box counts as cut by the border of a part, px


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Which masks are objects.

    Attributes:
        iou: predicted IoU that a mask exceeds.
        stability: stability that a mask exceeds: the IoU of the masks of logits above the offset
            and above its negative.
        offset: offset of logits.
    """

    iou: float
    stability: float
    offset: float


@dataclasses.dataclass(frozen=True)
class Piece:
    """A mask, cut to the box around it.

    Attributes:
        top: first row in the image.
        left: first column in the image.
        mask: pixels from there on.
    """

    top: int
    left: int
    mask: Mask

    def paste(self, target: Mask) -> None:
        """Sets the pixels in a mask of the image."""
        rows, columns = self.mask.shape
        target[self.top : self.top + rows, self.left : self.left + columns] = self.mask


def generate_masks(
    model: PretrainedModel,
    images: Any,
    *,
    points_per_side: int = 32,
    crop_layers: int = 0,
    crop_overlap: float = 512 / 1500,
    crop_points_divisor: int = 1,
    iou_threshold: float = 0.88,
    stability_threshold: float = 0.95,
    stability_offset: float = 1.0,
    nms_threshold: float = 0.7,
    batch_size: int = 64,
) -> Segmentation | list[Segmentation]:
    """Finds masks of all objects of an image, by a grid of points.

    Each point predicts three masks. Those of high predicted IoU and of high stability count, except
    those which the border of a part cuts. Of two masks with similar boxes, that of the lower
    predicted IoU is left out. The rules and defaults are those of transformers' pipeline
    "mask-generation", which removes no small regions.

    Args:
        model: SAM.
        images: an image (path, bytes, PIL image or array, see `data.images.read_image`), a list of
            images, or a folder.
        points_per_side: rows and columns of the grid of points.
        crop_layers: number of divisions of the image into parts, in each of which a grid of points
            is used as well, see `crops.crop_windows`. They find small objects.
        crop_overlap: fraction of the shorter side that parts of the first division share.
        crop_points_divisor: divisor of `points_per_side`, once for each division.
        iou_threshold: predicted IoU that a mask exceeds.
        stability_threshold: stability that a mask exceeds.
        stability_offset: offset of the logits of which stability is computed.
        nms_threshold: IoU of boxes above which one of both masks is left out; 1 for none.
        batch_size: points per batch.

    Returns:
        The masks of the image, from the highest predicted IoU to the lowest; for a list or a folder
        those of each image.

    Raises:
        UserError: another kind of model, an argument outside its range, or an image that cannot be
            read.

    Example:
        >>> import numpy as np, vit_jax
        >>> sizes = {"image_size": 32, "patch_size": 8, "window_size": 2, "depth": 2}
        >>> sizes |= {"num_global": 1, "width": 16, "num_heads": 2, "mlp_dim": 16, "out_width": 16}
        >>> sam = vit_jax.create_model("sam_vit_b", image=sizes, mask_width=8, num_heads=2)
        >>> image = np.zeros((40, 60, 3), np.uint8)
        >>> generate_masks(sam, image, points_per_side=2, iou_threshold=1.0).masks.shape
        (0, 40, 60)
    """
    runner = prompt_runner_of(model)
    check_positive(batch_size, "batch_size")
    check_fractions(
        iou_threshold=iou_threshold,
        stability_threshold=stability_threshold,
        nms_threshold=nms_threshold,
    )
    sides = [points_per_side // crop_points_divisor**i for i in range(crop_layers + 1)] if (
        crop_points_divisor >= 1 and crop_layers >= 0
    ) else []  # fmt: skip
    if not sides or min(sides) < 1 or not 0 <= crop_overlap < 1:
        raise UserError(
            f"points_per_side={points_per_side}, crop_layers={crop_layers}, crop_points_divisor="
            f"{crop_points_divisor}, crop_overlap={crop_overlap}: expected at least one point per "
            "side of each part, and an overlap of at least 0 and below 1"
        )
    thresholds = Thresholds(iou_threshold, stability_threshold, stability_offset)
    listed, results = list_images(images), []
    for key, source in zip(listed.keys, listed.sources, strict=True):
        pixels = read_image(source, key, max_pixels=model.max_image_pixels)
        height, width = pixels.shape[:2]
        windows = crop_windows(height, width, crop_layers, crop_overlap)
        boxes: list[Boxes] = []
        pieces: list[Piece] = []
        with progress_bar("parts", total=len(windows)) as bar:
            for layer, window in windows:
                found = _search(model, runner, pixels, window, sides[layer], thresholds, batch_size)
                boxes.append(found[0])
                pieces += found[1]
                bar.update()
        results.append(_join(key, pixels, join(boxes), pieces, nms_threshold))
    return results[0] if listed.single else results


def _search(
    model: PretrainedModel,
    runner: SamRunner,
    pixels: np.ndarray,
    window: Window,
    side: int,
    thresholds: Thresholds,
    batch_size: int,
) -> tuple[Boxes, list[Piece]]:
    """Masks of a part of an image."""
    top, left, height, width = window
    part = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    image = runner.embed(model, part)
    rows, columns = model.spec.inputs.scaled_size(height, width)
    at = point_grid(side) * np.array([width, height], np.float32)
    at = at * np.array([columns / width, rows / height], np.float32)
    points = np.stack([at, np.zeros_like(at)], axis=1)
    labels = np.tile(np.array([FOREGROUND, NO_POINT], np.int32), (len(at), 1))
    batches = runner.predict(
        model, image, Prompts(points, labels), multimask=True, batch_size=batch_size
    )
    boxes, scores, pieces = [], [], []
    for logits, quality in batches:
        flat = logits.reshape(-1, *logits.shape[2:])
        for low, score in zip(flat, quality.reshape(-1), strict=True):
            if thresholds.iou > 0 and not score > thresholds.iou:
                continue
            large = model.spec.inputs.restore(low, height, width)
            if not _is_stable(large, thresholds):
                continue
            mask = large > 0
            x0, y0, x1, y1 = box_around(mask)
            # Boxes end at their last pixel here, as in the original code.
            inner = np.array([x0, y0, max(x1 - 1, 0), max(y1 - 1, 0)], np.float32)
            if _is_cut(inner, window, pixels.shape[:2]):
                continue
            boxes.append(inner + np.array([left, top, left, top], np.float32))
            scores.append(score)
            pieces.append(Piece(top + y0, left + x0, mask[y0:y1, x0:x1].copy()))
    found = np.array(boxes, np.float32).reshape(-1, 4)
    count = np.zeros(len(boxes), np.int32)
    return Boxes(found, np.array(scores, np.float32), count), pieces


def _is_stable(logits: np.ndarray, thresholds: Thresholds) -> bool:
    """Whether a mask changes little with the threshold of its logits."""
    if thresholds.stability <= 0:
        return True
    inner, outer = (int((logits > offset * thresholds.offset).sum()) for offset in (1, -1))
    return outer > 0 and inner / outer > thresholds.stability


def _is_cut(box: Float32[np.ndarray, "4"], window: Window, size: tuple[int, ...]) -> bool:
    """Whether a box ends at a border of its part which is not a border of the image.

    Args:
        box: x0, y0, x1, y1 in pixels of the part.
        window: top, left, height and width of the part.
        size: height and width of the image.
    """
    top, left, height, width = window
    box = box + np.array([left, top, left, top], np.float32)
    of_part = np.abs(box - [left, top, left + width, top + height]) <= _EDGE
    of_image = np.abs(box - [0, 0, size[1], size[0]]) <= _EDGE
    return bool((of_part & ~of_image).any())


def _join(
    key: str, pixels: np.ndarray, found: Boxes, pieces: list[Piece], nms_threshold: float
) -> Segmentation:
    """Masks of an image that are not suppressed by others."""
    kept = np.flatnonzero(not_suppressed(found, nms_threshold))
    kept = kept[np.argsort(-found.scores[kept], kind="stable")]
    height, width = pixels.shape[:2]
    masks = np.zeros((len(kept), height, width), bool)
    for mask, row in zip(masks, kept, strict=True):
        pieces[row].paste(mask)
    return Segmentation(
        key,
        height,
        width,
        masks,
        found.scores[kept],
        np.arange(len(kept), dtype=np.int32),
        [""] * len(kept),
        np.zeros((len(kept), 0, 0), np.float32),
    )
