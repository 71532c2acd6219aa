"""A detector over all images of a source, on all devices and processes."""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vit_jax.data.images import read_image
from vit_jax.data.sources import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.batching import device_batches, not_finite
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params
from vit_jax.models.ops.boxes import cxcywh_to_xyxy

# (boxes (B, Q, 4), x0, y0, x1, y1 in pixels of the image; logits (B, Q, P), -inf for padding;
# classes (B, P)) -> arrays (B, ...), the first of them float
Selection = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]


def require_detector(embedder: Embedder) -> bool:
    """Checks that a model finds boxes by words, see `require_method`.

    Returns:
        Whether it reads the words as captions, see `caption_detector`.
    """
    captions = hasattr(embedder.model.bind(embedder.model.shapes()), "embed_caption")
    method = "embed_caption" if captions else "detect"
    require_method(embedder, method, "a detector, as owlvit_base_patch32")
    return captions


def require_method(embedder: Embedder, method: str, kind: str) -> None:
    """Checks that a model has a method that reads boxes and words.

    Args:
        embedder: gives the model, its inputs and its tokenizer.
        method: name of the method.
        kind: models that have it, for messages.

    Raises:
        UserError: the model does not have it, its tokenizer is missing, or its inputs show a part
            of the image.
    """
    if not hasattr(embedder.model.bind(embedder.model.shapes()), method):
        raise UserError(f"boxes need {kind}; found {type(embedder.model.architecture).__name__}")
    embedder.require_text()
    embedder.inputs.extent(*embedder.inputs.size)


def pad_prompts(rows: Sequence[Int[np.ndarray, " _"]]) -> Int[np.ndarray, "images prompts"]:
    """Lists of classes of different lengths as one array, int32, -1 for padding."""
    padded = np.full((len(rows), max(1, *map(len, rows))), -1, np.int32)
    for row, classes in zip(padded, rows, strict=True):
        row[: len(classes)] = classes
    return padded


class ImagePass(abc.ABC):
    """Runs a detector over a source, and selects from its outputs on the devices.

    An object is made once per evaluator, so that its function is compiled once.
    """

    def __init__(self, embedder: Embedder, source: Source):
        """Stores the arguments.

        Args:
            embedder: gives the model, its inputs and the devices.
            source: examples with an image each.
        """
        self._embedder, self._source = embedder, source

    def run(self, params: Params) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields what is selected for each image, the same on every process.

        Args:
            params: parameters of the model.

        Raises:
            UserError: an output is not finite.
        """
        embedder, shared = self._embedder, self.shared(params)
        detect = embedder.compile(self.detect)
        batches = device_batches(
            self.read,
            mesh=embedder.mesh,
            stop=len(self._source),
            batch_size=embedder.batch_size,
            description="detection",
        )
        for batch, rows in batches:
            outputs = jax.device_get(detect(params, batch, *shared))
            finite, *found = (x[: len(rows)] for x in outputs)
            if not finite.all():
                raise not_finite(f"boxes of image {rows[int(np.argmin(finite))]}")
            for row, *arrays in zip(rows, *found, strict=True):
                yield self.joined(row, arrays)

    def shared(self, params: Params) -> tuple[Any, ...]:
        """Arguments of `detect` that all batches share; none by default."""
        return ()

    def joined(self, row: int, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """What is yielded for an image, from its selected arrays; by default these."""
        return tuple(arrays)

    @abc.abstractmethod
    def read(self, row: int) -> dict[str, np.ndarray]:
        """Arrays of an image, part of a batch."""

    @abc.abstractmethod
    def detect(self, model: Any, batch: dict[str, jax.Array], *shared: Any) -> tuple[Any, ...]:
        """Whether the outputs of each image are finite (B,), and what is selected (B, ...)."""


class DetectorPass(ImagePass):
    """A detector that compares boxes with embeddings of class prompts."""

    def __init__(
        self,
        embedder: Embedder,
        source: Source,
        select: Selection,
        queries: Callable[[Params], Float[np.ndarray, "classes width"]],
        prompts: Int[np.ndarray, "images prompts"] | None = None,
    ):
        """Stores the arguments.

        Args:
            embedder: gives the model, its inputs and the devices.
            source: examples with an image each.
            select: selects from the boxes and logits of a batch.
            queries: computes the embedding of each class with parameters.
            prompts: classes that each image is asked for, -1 for padding; None for all classes.
        """
        super().__init__(embedder, source)
        self._select, self._queries, self._prompts = select, queries, prompts

    def shared(self, params: Params) -> tuple[Any, ...]:
        """The embeddings of the classes."""
        return (self._queries(params),)

    def read(self, row: int) -> dict[str, np.ndarray]:
        """The packed image, the extent of its input in its pixels, and its prompts."""
        embedder = self._embedder
        image = read_image(self._source[row]["image"], max_pixels=embedder.max_image_pixels)
        height, width = embedder.inputs.extent(*image.shape[:2])
        batch = {
            "image": embedder.inputs.pack(embedder.inputs(image)),
            "extent": np.array([width, height] * 2, np.float32),
        }
        return batch if self._prompts is None else {**batch, "prompts": self._prompts[row]}

    def detect(self, model: Any, batch: dict[str, jax.Array], *shared: Any) -> tuple[Any, ...]:
        """See `ImagePass.detect`."""
        (queries,) = shared
        images = self._embedder.inputs.normalize(batch["image"])
        classes = batch.get("prompts", jnp.arange(len(queries))[None])
        exist = classes >= 0
        outputs = model.detect(images, queries[jnp.maximum(classes, 0)], exist)
        boxes = cxcywh_to_xyxy(outputs["boxes"]) * batch["extent"][:, None]
        logits = jnp.where(exist[:, None], outputs["logits"], 0)
        finite = jnp.all(jnp.isfinite(boxes), (1, 2)) & jnp.all(jnp.isfinite(logits), (1, 2))
        logits = jnp.where(exist[:, None], logits, -jnp.inf)
        classes = jnp.broadcast_to(classes, (len(images), classes.shape[1]))
        return finite, *self._select(boxes, logits, classes)
