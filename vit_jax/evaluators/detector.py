"""A detector over all images of a source, on all devices and processes."""

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


class DetectorPass:
    """Runs a detector over a source, and selects from its outputs on the devices.

    An object is made once per evaluator, so that its function is compiled once.
    """

    def __init__(
        self,
        embedder: Embedder,
        source: Source,
        select: Selection,
        prompts: Int[np.ndarray, "images prompts"] | None = None,
    ):
        """Stores the arguments.

        Args:
            embedder: gives the model, its inputs and the devices.
            source: examples with an image each.
            select: selects from the boxes and logits of a batch.
            prompts: classes that each image is asked for, -1 for padding; None for all classes.
        """
        self._embedder, self._source, self._prompts = embedder, source, prompts
        self._select = select

    def run(
        self, params: Params, queries: Float[np.ndarray, "classes width"]
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields what is selected for each image, the same on every process.

        Args:
            params: parameters of the model.
            queries: embedding of each class.

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
            outputs = jax.device_get(detect(params, batch, queries))
            finite, *found = (x[: len(rows)] for x in outputs)
            if not finite.all():
                raise not_finite(f"boxes of image {rows[int(np.argmin(finite))]}")
            yield from zip(*found, strict=True)

    def _read(self, row: int) -> dict[str, np.ndarray]:
        embedder = self._embedder
        image = read_image(self._source[row]["image"], max_pixels=embedder.max_image_pixels)
        height, width = embedder.inputs.extent(*image.shape[:2])
        batch = {
            "image": embedder.inputs.pack(embedder.inputs(image)),
            "extent": np.array([width, height] * 2, np.float32),
        }
        return batch if self._prompts is None else {**batch, "prompts": self._prompts[row]}

    def _detect(
        self, model: Any, batch: dict[str, jax.Array], queries: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Whether the outputs of each image are finite, and the selection."""
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
