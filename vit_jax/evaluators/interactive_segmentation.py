"""Masks after clicks and from a box (Kirillov et al. 2023, SAM, section 7.1)."""

import collections
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Bool

from vit_jax.errors import UserError
from vit_jax.evaluators import mask_metrics
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.prompted import (
    Objects,
    PromptedPass,
    count_objects,
    read_objects,
    require_prompts,
    to_input,
)
from vit_jax.models.definition import Params
from vit_jax.models.sam.prompts import BACKGROUND, FOREGROUND, NO_POINT

Mask = Bool[np.ndarray, "height width"]


class InteractiveSegmentation:
    """Mean IoU of the masks of single objects, in pixels of their images.

    The first point is the one farthest inside the object. Each next point is the one farthest
    inside the error region: of the missing and of the superfluous pixels those of the larger
    distance (Sofiiuk et al. 2022, RITM). With the points the logits of the round before are given.
    Of the masks of a single point the one of the highest predicted IoU counts.

    Metrics, fractions in [0, 1], means over objects: `iou@k` after k points and `boundary_f@k`, see
    `mask_metrics.boundary_f`; `best_iou@1`, of the best of the masks of a single point; `iou_box`
    and `boundary_f_box` from the box of the object. Crowds and objects without a mask do not count.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: source with masks, as coco:instances_val2017.json?images=val2017.
            points: numbers of points after which the metrics are computed.
            boxes: whether they are computed from boxes too.
            max_objects: objects of an image that are predicted at once. `eval_batch_size` is the
                number of objects of a batch.
        """

        data: str
        points: tuple[int, ...] = (1, 3, 5)
        boxes: bool = True
        max_objects: int = 16

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source.

        Args:
            config: keys of the evaluator.
            embedder: gives the model, its inputs and the devices.

        Raises:
            UserError: a model that takes no points, a source without masks, or a key with an
                invalid value.
        """
        if not config.points or min(config.points) < 1:
            raise UserError(f"points={config.points!r}: expected numbers of points, 1 or more")
        self._config, self._embedder = config, embedder
        self._source = embedder.open_source(config.data)
        require_prompts(embedder)
        counts = count_objects(self._source, config.data)
        self._pass = PromptedPass(embedder, self._source, counts, config.max_objects)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        found: dict[str, list[float]] = collections.defaultdict(list)
        for embedded, parts in self._pass.run(params):
            objects = [read_objects(self._source, i).part(start, end) for i, start, end in parts]
            if self._config.boxes:
                prompts = self._pass.box_prompts(
                    [each.boxes for each in objects], [each.size for each in objects]
                )
                logits, _ = self._pass.predict(params, embedded, *prompts)
                self._score(objects, logits[:, :, 0], "_box", found)
            rounds = _Clicks(self._pass, self._embedder, objects)
            for number in range(1, max(self._config.points) + 1):
                logits, several = rounds.predict(params, embedded)
                if number == 1:
                    self._score_best(objects, several, found)
                if number in self._config.points:
                    self._score(objects, logits, f"@{number}", found)
        for name, values in found.items():
            yield name, float(np.mean(values))

    def _score(
        self,
        objects: list[Objects],
        logits: np.ndarray,
        suffix: str,
        found: dict[str, list[float]],
    ) -> None:
        for each, own in zip(objects, logits, strict=True):
            for target, x in zip(each.masks, own, strict=False):
                mask = self._restore(x, each)
                found[f"iou{suffix}"].append(_iou(mask, target))
                found[f"boundary_f{suffix}"].append(mask_metrics.boundary_f(mask, target))

    def _score_best(
        self, objects: list[Objects], several: np.ndarray, found: dict[str, list[float]]
    ) -> None:
        for each, own in zip(objects, several, strict=True):
            for target, masks in zip(each.masks, own, strict=False):
                best = max(_iou(self._restore(x, each), target) for x in masks)
                found["best_iou@1"].append(best)

    def _restore(self, logits: np.ndarray, objects: Objects) -> Mask:
        restored = self._embedder.inputs.restore(logits, *objects.size)
        return (restored > 0) & objects.valid


class _Clicks:
    """Rounds of clicks on the objects of a batch."""

    def __init__(self, run: PromptedPass, embedder: Embedder, objects: list[Objects]):
        self._pass, self._inputs, self._objects = run, embedder.inputs, objects
        self._points = np.zeros((len(objects), run.objects, 0, 2), np.float32)
        self._labels = np.zeros((len(objects), run.objects, 0), np.int32)
        self._logits: np.ndarray | None = None

    def predict(self, params: Params, embedded: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Adds a point to each object.

        Returns:
            Logits of the mask that counts (images, n, h, w), and of all masks (images, n, M, h, w).
        """
        self._click()
        # SAM was trained with a point of no position where there is no box.
        end = np.zeros((*self._labels.shape[:2], 1, 2), np.float32)
        several, scores = self._pass.predict(
            params,
            embedded,
            np.concatenate([self._points, end], axis=2),
            np.concatenate([self._labels, np.full(end.shape[:3], NO_POINT)], axis=2),
            self._logits,
            multimask=self._logits is None,
        )
        best = np.argmax(scores, axis=2)[..., None, None, None]
        self._logits = np.take_along_axis(several, best, axis=2)[:, :, 0]
        return self._logits, several

    def _click(self) -> None:
        shape = self._labels.shape[:2]
        points, labels = np.zeros((*shape, 1, 2), np.float32), np.full((*shape, 1), NO_POINT)
        for image, objects in enumerate(self._objects):
            for n, target in enumerate(objects.masks):
                found = np.zeros_like(target)
                if self._logits is not None:
                    restored = self._inputs.restore(self._logits[image, n], *objects.size)
                    found = (restored > 0) & objects.valid
                (x, y), inside = next_click(found, target)
                place = to_input(np.array([[x + 0.5, y + 0.5]]), self._inputs, objects.size)
                points[image, n] = place - 0.5
                labels[image, n] = FOREGROUND if inside else BACKGROUND
        self._points = np.concatenate([self._points, points], axis=2)
        self._labels = np.concatenate([self._labels, labels], axis=2)


def next_click(found: Mask, target: Mask) -> tuple[tuple[int, int], bool]:
    """Chooses the next point of a user.

    Args:
        found: predicted mask.
        target: right mask, not empty.

    Returns:
        Column and row, and whether it is of the right mask. Without an error it is the point
        farthest inside of the right mask.
    """
    missing, depth = mask_metrics.farthest_inside(target & ~found)
    superfluous, other = mask_metrics.farthest_inside(found & ~target)
    if not depth and not other:
        return mask_metrics.farthest_inside(target)[0], True
    return (missing, True) if depth >= other else (superfluous, False)


def _iou(found: Mask, target: Mask) -> float:
    return mask_metrics.mean_iou([mask_metrics.overlap(found, target)])
