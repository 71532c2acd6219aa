"""A model that takes points and boxes, over the annotated objects of a source."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32

from vit_jax.data.boxed_examples import Part as Example
from vit_jax.data.boxed_examples import check_source
from vit_jax.data.images import EncodedImage, read_image
from vit_jax.data.masks import boxes_of, decode_mask
from vit_jax.data.sources import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.batching import device_batches, not_finite
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.regions import Part, in_parts
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import Params
from vit_jax.models.sam.prompts import LOWER_RIGHT, UPPER_LEFT


@dataclasses.dataclass(frozen=True)
class Objects:
    """Some annotated objects of an image.

    Attributes:
        masks: their masks, in pixels of the image, none of them empty.
        names: their names.
        valid: pixels that are annotated.
    """

    masks: list[Bool[np.ndarray, "height width"]]
    names: list[str]
    valid: Bool[np.ndarray, "height width"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, px."""
        return self.valid.shape[0], self.valid.shape[1]

    @property
    def boxes(self) -> Float32[np.ndarray, "n 4"]:
        """Smallest boxes around the masks, x0, y0, x1, y1, px."""
        return boxes_of(np.reshape(self.masks, (-1, *self.size)).astype(np.bool_))

    def part(self, start: int, stop: int) -> "Objects":
        """Some of the objects."""
        return Objects(self.masks[start:stop], self.names[start:stop], self.valid)


def require_prompts(embedder: Embedder) -> None:
    """Checks that a model predicts masks from points and boxes.

    Args:
        embedder: gives the model and its inputs.

    Raises:
        UserError: another kind of model, or inputs that show a part of the image.
    """
    if not hasattr(embedder.model.bind(embedder.model.shapes()), "predict_masks"):
        raise UserError(
            "masks by points and boxes need a model that takes them, as sam_vit_b; found "
            f"{type(embedder.model.architecture).__name__}"
        )
    embedder.inputs.extent(*embedder.inputs.size)


def count_objects(source: Source, data: str) -> list[int]:
    """Counts the single objects of each image, with and without masks.

    Args:
        source: source of masks.
        data: its spec, for messages.

    Raises:
        UserError: a source without masks, or without objects.
    """
    check_source(source, masks=True)
    annotations = (source.annotation(row) for row in range(len(source)))
    counts = [len(Example.of({"image": None, **each}).names) for each in annotations]
    if not any(counts):
        raise UserError(f"{data} has no object")
    return counts


def image_size(image: Any) -> tuple[int, int]:
    """Height and width of an image of any kind, px; from its header where it is encoded."""
    height, width = (image if isinstance(image, EncodedImage) else read_image(image)).shape[:2]
    return height, width


def read_objects(source: Source, row: int) -> Objects:
    """Reads the single objects of an image that have a mask.

    Args:
        source: source of masks.
        row: its example.

    Raises:
        UserError: the example has no masks, or one that cannot be decoded.
    """
    part = Example.of(source[row])
    if part.masks is None:
        raise UserError(f"{part.key} has no masks")
    height, width = image_size(part.image)
    decoded = [decode_mask(mask, height, width) for mask in part.masks]
    valid = np.ones((height, width), np.bool_) if part.ignored is None else ~part.ignored
    masks = {i: mask & valid for i, mask in enumerate(decoded) if mask is not None}
    shown = [i for i, mask in masks.items() if mask.any()]
    return Objects([masks[i] for i in shown], [part.names[i] for i in shown], valid)


def to_input(
    points: Float[np.ndarray, "n 2"], inputs: ImageInputs, size: tuple[int, int]
) -> Float32[np.ndarray, "n 2"]:
    """Converts positions in an image to the model's input; 0 is the edge of the first pixel.

    Args:
        points: x and y in pixels of the image.
        inputs: the model's preprocessing.
        size: height and width of the image, px.
    """
    scale = np.divide(inputs.scaled_size(*size), inputs.extent(*size))
    return (points * scale[::-1]).astype(np.float32)


class PromptedPass:
    """Embeds the images of a source, and predicts the masks of prompts.

    An object is made once per evaluator, so that its functions are compiled once.
    """

    def __init__(self, embedder: Embedder, source: Source, counts: Sequence[int], max_objects: int):
        """Divides the objects into parts.

        Args:
            embedder: gives the model, its inputs and the devices.
            source: source of images.
            counts: number of objects of each image, at least one in total.
            max_objects: objects of an image that are predicted at once.

        Raises:
            UserError: another kind of model, or a number below 1.
        """
        require_prompts(embedder)
        if max_objects < 1:
            raise UserError(f"max_objects={max_objects}: expected 1 or more")
        self._embedder, self._source = embedder, source
        self.objects = min(max_objects, max(counts))
        self._parts = in_parts(counts, self.objects)

    def run(self, params: Params) -> Iterator[tuple[jax.Array, list[Part]]]:
        """Yields features of a batch, and image, first and end of its objects.

        They are the same on every process.

        Args:
            params: parameters of the model.
        """
        embedder = self._embedder
        embed = embedder.compile(self._embed)
        batches = device_batches(
            self._read,
            mesh=embedder.mesh,
            stop=len(self._parts),
            batch_size=max(1, embedder.batch_size // self.objects),
            description="masks",
        )
        for batch, rows in batches:
            yield embed(params, batch), [self._parts[row] for row in rows]

    def predict(
        self,
        params: Params,
        embedded: jax.Array,
        points: Float[np.ndarray, "images n points 2"],
        labels: np.ndarray,
        masks: Float[np.ndarray, "images n height width"] | None = None,
        *,
        multimask: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predicts masks; the arguments are those of `Sam.predict_masks`, with fewer images.

        Args:
            params: parameters of the model.
            embedded: features of a batch.
            points: points of its first images, px of the model's input; 0 is the first pixel.
            labels: labels of the points.
            masks: logits of the round before.
            multimask: whether to predict several masks of each prompt.

        Returns:
            Logits (images, n, M, h, w) and predicted IoU (images, n, M).

        Raises:
            UserError: an output is not finite.
        """
        count = len(embedded)
        arrays: list[Any] = [_fill(points, count), _fill(labels.astype(np.int32), count)]
        if masks is not None:
            arrays.append(_fill(masks, count))
        function = self._predict_several if multimask else self._predict_one
        found = jax.device_get(self._embedder.compile(function)(params, embedded, *arrays))
        logits, scores = found["masks"][: len(points)], found["scores"][: len(points)]
        if not (np.isfinite(logits).all() and np.isfinite(scores).all()):
            raise not_finite("masks")
        return logits, scores

    def box_prompts(
        self, boxes: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Makes prompts of boxes.

        Args:
            boxes: boxes of each image, x0, y0, x1, y1, px.
            sizes: height and width of each image, px.

        Returns:
            Points (images, objects, 2, 2) and labels (images, objects, 2).
        """
        points = np.zeros((len(boxes), self.objects, 2, 2), np.float32)
        for row, corners, size in zip(points, boxes, sizes, strict=True):
            place = to_input(corners.reshape(-1, 2), self._embedder.inputs, size)
            row[: len(corners)] = place.reshape(-1, 2, 2)
        return points, np.broadcast_to([UPPER_LEFT, LOWER_RIGHT], points.shape[:3])

    def _read(self, index: int) -> dict[str, np.ndarray]:
        embedder = self._embedder
        image = read_image(
            self._source[self._parts[index][0]]["image"], max_pixels=embedder.max_image_pixels
        )
        return {
            "image": embedder.inputs.pack(embedder.inputs(image)),
            "sizes": np.array(embedder.inputs.scaled_size(*image.shape[:2]), np.int32),
        }

    def _embed(self, model: Any, batch: dict[str, jax.Array]) -> jax.Array:
        images = self._embedder.inputs.normalize(batch["image"])
        return model.embed_image(images, batch["sizes"])

    def _predict_one(self, model: Any, embedded: jax.Array, *prompts: jax.Array) -> Any:
        return model.predict_masks(embedded, *prompts, multimask=False)

    def _predict_several(self, model: Any, embedded: jax.Array, *prompts: jax.Array) -> Any:
        return model.predict_masks(embedded, *prompts, multimask=True)


def _fill(array: np.ndarray, count: int) -> np.ndarray:
    """Adds rows of zeros for the images that fill a batch."""
    return np.pad(array, ((0, count - len(array)), *((0, 0),) * (array.ndim - 1)))
