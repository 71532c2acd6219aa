"""Average precision of masks of given boxes (Kirillov et al. 2023, SAM, section 7.4)."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_jax.data.boxed_examples import check_boxes
from vit_jax.data.images import read_image
from vit_jax.data.masks import decode_mask, encode_mask
from vit_jax.errors import UserError
from vit_jax.evaluators import average_precision as ap
from vit_jax.evaluators import predictions
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.prompted import (
    PromptedPass,
    count_objects,
    image_size,
    require_prompts,
)
from vit_jax.models.definition import Params


class InstanceSegmentation:
    """COCO's average precision of masks, predicted from boxes, through faster-coco-eval.

    The boxes are those of a detector, whose classes and scores they keep, or the annotated ones,
    whose score is the predicted IoU. A box is an unambiguous prompt.

    Metrics, fractions in [0, 1], or -1 where there is no object to find: `AP` (mean over the IoU
    thresholds 0.5, 0.55, ..., 0.95), `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large`. Objects
    without a mask do not count.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: source with masks, as coco:instances_val2017.json?images=val2017.
            boxes: source of the boxes of the same images, as
                coco:detections.json?images=val2017 for the file that
                `vit_jax.detect(..., output="detections.json")` writes; "": annotated boxes.
            max_objects: boxes of an image that are predicted at once. `eval_batch_size` is the
                number of boxes of a batch.
        """

        data: str
        boxes: str = ""
        max_objects: int = 16

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the sources and reads the boxes.

        Args:
            config: keys of the evaluator.
            embedder: gives the model, its inputs and the devices.

        Raises:
            UserError: a model that takes no boxes, a source without masks or classes, or boxes of
                other images.
            MissingPackageError: faster-coco-eval is not installed.
        """
        ap.require_package()
        require_prompts(embedder)
        self._embedder = embedder
        self._source = embedder.open_source(config.data)
        if not self._source.class_names:
            raise UserError(f"{config.data} has no classes: expected names of masks, as in coco:")
        self._classes = {name: i for i, name in enumerate(self._source.class_names)}
        count_objects(self._source, config.data)
        self._prompts = self._read_boxes(config)
        counts = [len(each["boxes"]) for each in self._prompts]
        self._pass = PromptedPass(embedder, self._source, counts, config.max_objects)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        inputs, sizes = self._embedder.inputs, [self._size(i) for i in range(len(self._source))]
        masks: list[list[dict[str, Any]]] = [[] for _ in sizes]
        quality: list[list[float]] = [[] for _ in sizes]
        for embedded, parts in self._pass.run(params):
            boxes = [self._prompts[image]["boxes"][start:end] for image, start, end in parts]
            prompts = self._pass.box_prompts(boxes, [sizes[image] for image, _, _ in parts])
            logits, scores = self._pass.predict(params, embedded, *prompts)
            for (image, start, end), own, predicted in zip(parts, logits, scores, strict=True):
                for x in own[: end - start, 0]:
                    masks[image].append(encode_mask(inputs.restore(x, *sizes[image]) > 0))
                quality[image] += predicted[: end - start, 0].tolist()
        detected = [
            ap.Detected(
                boxes=each["boxes"],
                classes=np.array([self._classes[name] for name in each["names"]], np.int64),
                scores=np.asarray(each.get("scores", np.array(own, np.float64))),
                masks=found,
            )
            for each, own, found in zip(self._prompts, quality, masks, strict=True)
        ]
        annotated = [self._annotated(row, size) for row, size in enumerate(sizes)]
        self._found = annotated, detected
        curves = ap.compute_curves(annotated, detected, len(self._classes))
        yield "AP", ap.average_precision(curves)
        yield "AP50", ap.average_precision(curves, iou=0.5)
        yield "AP75", ap.average_precision(curves, iou=0.75)
        for area in ap.AREAS[1:]:
            yield f"AP_{area}", ap.average_precision(curves, area=area)

    def predicted(self, limit: int) -> predictions.Arrays:
        """Returns masks of the last `run`, of images at even distances, see `predictions.masks`.

        Of the predicted masks those of the highest scores are drawn, as many as are annotated.

        Args:
            limit: largest number of images, of which at most `predictions.SHOWN` are kept.
        """
        annotated, detected = self._found
        shown = [row for row, image in enumerate(annotated) if image.masks]
        rows = []
        for row in predictions.evenly(len(shown), min(limit, predictions.SHOWN)):
            true, found = annotated[shown[row]], detected[shown[row]]
            pixels = self._source[shown[row]]["image"]
            image = read_image(pixels, max_pixels=self._embedder.max_image_pixels)
            best = np.argsort(found.scores, kind="stable")[-len(true.classes) :]
            stored = [(found.masks or ())[i] for i in best], true.masks or ()
            predicted, annotated_masks = (
                [m for each in part if (m := decode_mask(each, *image.shape[:2])) is not None]
                for part in stored
            )
            caption = f"{len(true.classes)} objects"
            rows.append(predictions.masks(image, predicted, annotated_masks, caption))
        return predictions.captioned("segmentation", rows)

    def _read_boxes(self, config: Config) -> list[dict[str, Any]]:
        """Boxes and names of each image, with the scores of a detector."""
        own = [self._source.annotation(row) for row in range(len(self._source))]
        if not config.boxes:
            return [self._boxes(each) for each in own]
        given = self._embedder.open_source(config.boxes)
        listed = (given.annotation(row) for row in range(len(given)))
        found = {each.get("key"): self._boxes(each) for each in listed}
        nothing = {"boxes": np.zeros((0, 4), np.float32), "names": []}
        matched = [found.get(each.get("key"), nothing) for each in own]
        if not any(each["names"] for each in matched):
            raise UserError(
                f"boxes={config.boxes!r} has no box of a class and an image of {config.data}, as "
                f"{own[0].get('key')}: expected the same folder of images"
            )
        return matched

    def _boxes(self, example: dict[str, Any]) -> dict[str, Any]:
        boxes, names = check_boxes(example)
        crowd = np.asarray(example.get("crowd", np.zeros(len(names))), np.bool_)
        kept = [i for i, name in enumerate(names) if name in self._classes and not crowd[i]]
        scores = {"scores": example["scores"][kept]} if "scores" in example else {}
        return {"boxes": boxes[kept], "names": [names[i] for i in kept], **scores}

    def _size(self, row: int) -> tuple[int, int]:
        return image_size(self._source[row]["image"])

    def _annotated(self, row: int, size: tuple[int, int]) -> ap.Annotated:
        """Objects of an image that have a mask, with crowds."""
        example = self._source.annotation(row)
        decoded = [decode_mask(mask, *size) for mask in example["segmentation"]]
        masks = {i: mask for i, mask in enumerate(decoded) if mask is not None}
        kept, names = list(masks), example["names"]
        areas = example.get("areas", [0 if mask is None else mask.sum() for mask in decoded])
        return ap.Annotated(
            boxes=example["boxes"][kept],
            classes=np.array([self._classes[names[i]] for i in kept], np.int64),
            crowd=np.asarray(example.get("crowd", np.zeros(len(names))), np.bool_)[kept],
            areas=np.asarray(areas, np.float64)[kept],
            masks=[encode_mask(mask) for mask in masks.values()],
        )
