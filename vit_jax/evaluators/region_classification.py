"""Accuracy of annotated boxes that are classified by words (Zhong et al. 2022, section 4.3)."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.boxed_examples import check_boxes
from vit_jax.data.images import read_image
from vit_jax.errors import UserError
from vit_jax.evaluators import metrics, prompts
from vit_jax.evaluators.batching import device_batches, not_finite
from vit_jax.evaluators.detector import require_method
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.regions import in_parts, join_parts, relative_boxes
from vit_jax.models.definition import Params

logger = logging.getLogger(__name__)


class RegionClassification:
    """Fraction of the boxes of a source whose class has the largest logit of all classes.

    Metrics, fractions in [0, 1]: `top1`, `top5`, and `mean_per_class_recall`, the mean of `top1`
    over the classes that occur. The background is no candidate. Boxes of crowds do not count.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: source with boxes, as coco:instances_val2017.json?images=val2017.
            templates: prompt templates, each with one `{}`, or the name of a set of templates, see
                `prompts.templates`.
            class_names: names of the classes in prompts, see `prompts.class_names`.
            max_boxes: boxes of an image that are classified at once. `eval_batch_size` is the
                number of boxes of a batch.
        """

        data: str
        templates: str | tuple[str, ...] = ("{}",)
        class_names: str | tuple[str, ...] = ""
        max_boxes: int = 100

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source and reads its annotations.

        Args:
            config: keys of the evaluator.
            embedder: computes embeddings of classes, and gives model, inputs and devices.

        Raises:
            UserError: a model that does not classify boxes, a source without boxes or classes, or
                a key with an invalid value.
        """
        require_method(
            embedder, "classify_regions", "a model that classifies them, as regionclip_rn50"
        )
        if config.max_boxes < 1:
            raise UserError(f"max_boxes={config.max_boxes}: expected 1 or more")
        self._config, self._embedder = config, embedder
        self._templates = prompts.templates(config.templates)
        self._source = embedder.open_source(config.data)
        if not self._source.class_names:
            raise UserError(f"{config.data} has no classes: expected boxes with names, as in coco:")
        self._names = prompts.class_names(config.class_names, self._source.class_names)
        self._read_annotations(self._source.class_names)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters.

        Raises:
            UserError: a logit is not finite.
        """
        queries = self._embedder.class_embeddings(params, self._names, self._templates)
        contents = [metrics.text_content(name) for name in self._names]
        ranks, targets = [], np.concatenate(self._labels)
        outputs = ((logits,) for logits in self._logits(params, queries))
        for image, (scores,) in join_parts(self._parts, outputs):
            if not np.isfinite(scores).all():
                raise not_finite(f"logits of the boxes of image {image}")
            ranks.append(metrics.rank_of_target(scores, self._labels[image], contents))
        rank = np.concatenate(ranks)
        yield "top1", float(np.mean(rank < 1))
        yield "top5", float(np.mean(rank < 5))
        yield "mean_per_class_recall", metrics.mean_per_class_recall(rank < 1, targets)

    def _read_annotations(self, names: list[str]) -> None:
        """Boxes and classes of each image, without crowds."""
        index = {name: i for i, name in enumerate(names)}
        self._boxes: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        crowds = 0
        for row in range(len(self._source)):
            example = self._source.annotation(row)
            boxes, found = check_boxes(example)
            single = ~np.asarray(example.get("crowd", np.zeros(len(found))), np.bool_)
            crowds += int((~single).sum())
            self._boxes.append(boxes[single])
            self._labels.append(np.array([index[name] for name in found], np.int64)[single])
        if crowds:
            logger.info("%s: %d boxes of crowds do not count", self._config.data, crowds)
        counts = [len(boxes) for boxes in self._boxes]
        if not any(counts):
            raise UserError(f"{self._config.data} has no box of a single object")
        self._count = min(self._config.max_boxes, max(counts))
        self._parts = in_parts(counts, self._count)

    def _logits(self, params: Params, queries: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the logits (max_boxes, classes) of each part, the same on every process."""
        embedder = self._embedder
        classify = embedder.compile(self._classify)
        batches = device_batches(
            self._read,
            mesh=embedder.mesh,
            stop=len(self._parts),
            batch_size=max(1, embedder.batch_size // self._count),
            description="regions",
        )
        for batch, parts in batches:
            yield from jax.device_get(classify(params, batch, queries))[: len(parts)]

    def _read(self, index: int) -> dict[str, np.ndarray]:
        embedder, (row, start, stop) = self._embedder, self._parts[index]
        image = read_image(self._source[row]["image"], max_pixels=embedder.max_image_pixels)
        extent = embedder.inputs.extent(*image.shape[:2])
        return {
            "image": embedder.inputs.pack(embedder.inputs(image)),
            "boxes": relative_boxes(self._boxes[row][start:stop], extent, self._count),
        }

    def _classify(self, model: Any, batch: dict[str, jax.Array], queries: jax.Array) -> jax.Array:
        images = self._embedder.inputs.normalize(batch["image"])
        return model.classify_regions(images, batch["boxes"], jnp.asarray(queries)[None])
