"""A detector that reads captions, over all images of a source, on all devices and processes."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from vit_jax.data.images import read_image
from vit_jax.data.sources import Source
from vit_jax.evaluators.batching import device_batches, not_finite
from vit_jax.evaluators.detector import Selection
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params
from vit_jax.models.ops.boxes import cxcywh_to_xyxy


@dataclasses.dataclass(frozen=True)
class ClassCaption:
    """A caption and the classes that it names.

    Attributes:
        classes: class of each name (P,).
        tokens: ids, with zeros as padding (T,).
        of_class: whether each token is one of each name (P, T).
    """

    classes: Int[np.ndarray, " names"]
    tokens: Int[np.ndarray, " length"]
    of_class: Bool[np.ndarray, "names length"]


class CaptionPass:
    """Runs a detector over a source, and selects from its outputs on the devices.

    The logit of a class is that of the mean probability of its tokens (GLIP, Li et al. 2022;
    Grounding DINO); with a centerness, of the square root of their product, as GLIP's authors do.

    An object is made once per evaluator, so that its function is compiled once.
    """

    def __init__(
        self,
        embedder: Embedder,
        source: Source,
        select: Selection,
        captions: Sequence[Sequence[ClassCaption]],
    ):
        """Stores the arguments.

        Args:
            embedder: gives the model, its inputs and the devices.
            source: examples with an image each.
            select: selects from the boxes and logits of a caption, see `detector.Selection`.
            captions: captions of each image; all have the same number of tokens.
        """
        self._embedder, self._source, self._select = embedder, source, select
        self._captions = captions
        self._parts = max(map(len, captions))
        self._names = max(len(each.classes) for image in captions for each in image)

    def run(self, params: Params) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields what is selected for each caption of each image, joined along the first axis.

        It is the same on every process.

        Args:
            params: parameters of the model.

        Raises:
            UserError: an output is not finite.
        """
        embedder = self._embedder
        detect = embedder.compile(self._detect)
        batches = device_batches(
            self._read,
            mesh=embedder.mesh,
            stop=len(self._source),
            batch_size=embedder.batch_size,
            description="detection",
        )
        for batch, rows in batches:
            outputs = jax.device_get(detect(params, batch))
            finite, *found = (np.moveaxis(x, 0, 1)[: len(rows)] for x in outputs)
            if not finite.all():
                raise not_finite(f"boxes of image {rows[int(np.argmin(finite.all(axis=1)))]}")
            for row, *arrays in zip(rows, *found, strict=True):
                count = len(self._captions[row])
                yield tuple(np.concatenate(x[:count]) for x in arrays)

    def _read(self, row: int) -> dict[str, np.ndarray]:
        embedder, captions = self._embedder, self._captions[row]
        image = read_image(self._source[row]["image"], max_pixels=embedder.max_image_pixels)
        height, width = image.shape[:2]
        # The first caption stands in for those that other images have more.
        padded = [*captions, *[captions[0]] * (self._parts - len(captions))]
        rest = [(0, self._names - len(each.classes)) for each in padded]
        return {
            "image": embedder.inputs.pack(embedder.inputs(image)),
            "size": np.array(embedder.inputs.scaled_size(height, width), np.int32),
            "extent": np.array([width, height] * 2, np.float32),
            "tokens": np.stack([each.tokens for each in padded]),
            "classes": np.stack(
                [
                    np.pad(each.classes.astype(np.int32), own, constant_values=-1)
                    for each, own in zip(padded, rest, strict=True)
                ]
            ),
            "of_class": np.stack(
                [
                    np.pad(each.of_class, (own, (0, 0)))
                    for each, own in zip(padded, rest, strict=True)
                ]
            ),
        }

    def _detect(self, model: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        """Whether the outputs of each image are finite, and the selection, (captions, B, ...)."""
        images = self._embedder.inputs.normalize(batch["image"])

        def of_caption(
            each: tuple[jax.Array, jax.Array, jax.Array],
        ) -> tuple[jax.Array, ...]:
            tokens, classes, of_class = each
            found = model(images, tokens, sizes=batch["size"])
            boxes = cxcywh_to_xyxy(found["boxes"]) * batch["extent"][:, None]
            count = jnp.maximum(jnp.sum(of_class, axis=-1, keepdims=True), 1)
            probabilities = jax.nn.sigmoid(found["logits"])
            scores = jnp.einsum("bqt,bpt->bqp", probabilities, of_class / count)
            if "centerness" in found:
                scores = jnp.sqrt(scores * jax.nn.sigmoid(found["centerness"])[..., None])
            finite = jnp.all(jnp.isfinite(boxes), (1, 2)) & jnp.all(jnp.isfinite(scores), (1, 2))
            logits = jnp.where(classes[:, None] >= 0, jax.scipy.special.logit(scores), -jnp.inf)
            return finite, *self._select(boxes, logits, classes)

        keys = ("tokens", "classes", "of_class")
        return jax.lax.map(of_caption, tuple(jnp.moveaxis(batch[key], 1, 0) for key in keys))
