"""Features of patches, and the labels of their pixels, for probes of dense prediction."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from vit_jax.data.images import read_image
from vit_jax.data.masks import decode_mask, paint_labels
from vit_jax.data.sources import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.batching import device_batches, not_finite
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.prompted import image_size
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import Params
from vit_jax.models.sizes import grid_of

BACKGROUND = "background"


def patch_features(
    model: Any, images: Float[Array, "batch height width 3"], layer: int
) -> Float[Array, "batch rows columns dim"]:
    """Computes the output of a block or stage as a map.

    Args:
        model: any model with an image encoder that has `features`.
        images: normalized images.
        layer: block or stage; negative ones count from the last.
    """
    encoder = getattr(model, "image", model)
    (found,) = encoder.features(images, [layer])
    if found.ndim == 4:
        return found
    size = images.shape[1], images.shape[2]
    rows, columns = grid_of(size, encoder.config.patch_size)
    patches = found[:, encoder.config.num_prefix :]
    return patches.reshape(len(images), rows, columns, -1)


class DenseSource:
    """The maps and label maps of a source with masks.

    Of sources without label maps, the masks of all objects are painted, smaller ones over larger
    ones, and the class `background` is added for all other pixels.

    Attributes:
        class_names: names of the classes.
    """

    def __init__(self, embedder: Embedder, data: str, layer: int):
        """Opens the source.

        Args:
            embedder: gives the model, its inputs and the devices.
            data: source with masks, see `vit_jax.data.sources`.
            layer: block or stage of the features; negative ones count from the last.

        Raises:
            UserError: a source without masks or classes, or a model without maps of features.
        """
        encoder = embedder.model.bind(embedder.model.shapes())
        if not hasattr(getattr(encoder, "image", encoder), "features"):
            raise UserError(
                "dense probes need an image encoder with features, as vit_b16; found "
                f"{type(embedder.model.architecture).__name__}"
            )
        self._embedder, self._layer, self._data = embedder, layer, data
        self._source: Source = embedder.open_source(data)
        first = self._source.annotation(0)
        if self._source.class_names is None or not {"label_map", "segmentation"} & {*first}:
            raise UserError(
                f"{data} has no classes of pixels: expected a source of masks, as semantic:, coco: "
                "or emoji_scenes:"
            )
        self._painted = "label_map" not in first
        self.class_names = [*self._source.class_names, *([BACKGROUND] if self._painted else [])]
        self._index = {name: i for i, name in enumerate(self.class_names)}
        # The whole image, whatever part of it the model's preprocessing shows.
        self._inputs: ImageInputs = dataclasses.replace(
            embedder.inputs, resize="squash", crop_fraction=1.0, shortest_edge=0
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self._source)

    def maps(
        self, params: Params
    ) -> Iterator[tuple[Float32[np.ndarray, "rows columns dim"], Int[np.ndarray, "height width"]]]:
        """Yields features and labels of each image, the same on every process.

        Args:
            params: parameters of the model.

        Yields:
            Features of the patches, and the class of each pixel of the image, -1 for none.

        Raises:
            UserError: a feature is not finite.
        """
        embedder = self._embedder
        compute = embedder.compile(self._features)
        batches = device_batches(
            self._read,
            mesh=embedder.mesh,
            stop=len(self._source),
            batch_size=embedder.batch_size,
            description="patches",
        )
        for batch, rows in batches:
            found = np.asarray(compute(params, batch["image"]), np.float32)
            for row, features in zip(rows, found, strict=False):
                if not np.isfinite(features).all():
                    raise not_finite(f"features of image {row}")
                yield features, self._labels(row)

    def _read(self, row: int) -> dict[str, np.ndarray]:
        image = read_image(self._source[row]["image"], max_pixels=self._embedder.max_image_pixels)
        return {"image": self._inputs.pack(self._inputs(image))}

    def _features(self, model: Any, packed: jax.Array) -> jax.Array:
        return patch_features(model, self._inputs.normalize(packed), self._layer)

    def _labels(self, row: int) -> Int[np.ndarray, "height width"]:
        if not self._painted:
            return self._source.annotation(row)["label_map"]
        example = self._source[row]
        height, width = image_size(example["image"])
        masks, labels = [], []
        for name, stored in zip(example["names"], example["segmentation"], strict=True):
            if (mask := decode_mask(stored, height, width)) is not None:
                masks.append(mask)
                labels.append(self._index[name])
        return paint_labels(masks, labels, height, width, self._index[BACKGROUND])


def label_fractions(
    labels: Int[np.ndarray, "height width"], grid: tuple[int, int], num_classes: int
) -> Float32[np.ndarray, "rows columns classes"]:
    """Computes which fraction of the pixels of each patch has each class.

    Args:
        labels: class of each pixel, -1 for none.
        grid: rows and columns of patches over the whole image.
        num_classes: number of classes.
    """
    found = np.zeros((*grid, num_classes), np.float32)
    for label in np.unique(labels[labels >= 0]).tolist():
        mask = (labels == label).astype(np.float32)
        found[..., label] = cv2.resize(mask, grid[::-1], interpolation=cv2.INTER_AREA)
    return found


def predict_pixels(
    scores: Float[np.ndarray, "rows columns classes"], size: tuple[int, int]
) -> Int[np.ndarray, "height width"]:
    """Interpolates scores of patches to the pixels, bilinear, and takes the largest.

    Args:
        scores: scores of the classes of each patch.
        size: height and width of the image, px.
    """
    best = np.full(size, -np.inf, np.float32)
    predicted = np.zeros(size, np.int32)
    for label in range(scores.shape[-1]):  # one class at a time, for many classes
        small = np.ascontiguousarray(scores[..., label], np.float32)
        plane = cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR)
        higher = plane > best
        predicted[higher] = label
        best[higher] = plane[higher]
    return predicted
