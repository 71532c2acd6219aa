"""Compiled calls of SAM."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from vit_jax.detection.runner import padded_size
from vit_jax.models.definition import Params
from vit_jax.models.sam.prompts import MASK_SCALE
from vit_jax.models.sizes import grid_of
from vit_jax.pretrained.model import PretrainedModel
from vit_jax.segmentation.prompts import Prompts


@dataclasses.dataclass(frozen=True)
class EmbeddedImage:
    """Features of an image, which serve any number of prompts; see `vit_jax.embed_image`.

    Attributes:
        features: features as the decoder reads them (1, h, w, C).
        height: height of the image, px.
        width: width of the image, px.
        key: path of the image; "" for an array.
    """

    features: jax.Array
    height: int
    width: int
    key: str = ""


class SamRunner:
    """The image encoder, and the decoder for batches of prompts."""

    def __init__(self, model: PretrainedModel) -> None:
        """Declares the functions, which are compiled at first use.

        Args:
            model: SAM.
        """
        definition, inputs = model.definition, model.spec.inputs
        rows, columns = grid_of(inputs.size, model.spec.architecture.image.patch_size)
        self.mask_size = MASK_SCALE * rows, MASK_SCALE * columns

        @jax.jit
        def embed(params: Params, packed: jax.Array, sizes: jax.Array) -> jax.Array:
            return definition.bind(params).embed_image(inputs.normalize(packed), sizes)

        @functools.partial(jax.jit, static_argnames="multimask")
        def predict(
            params: Params,
            features: jax.Array,
            points: jax.Array,
            labels: jax.Array,
            masks: jax.Array | None,
            multimask: bool,
        ) -> dict[str, jax.Array]:
            given = (points[None], labels[None], None if masks is None else masks[None])
            return definition.bind(params).predict_masks(features, *given, multimask=multimask)

        self._embed, self._predict = embed, predict

    def embed(
        self, model: PretrainedModel, pixels: UInt8[np.ndarray, "height width _"], key: str = ""
    ) -> EmbeddedImage:
        """Computes the features of an image.

        Args:
            model: SAM.
            pixels: uint8 (H, W, 3), or (H, W, 4) with alpha.
            key: path of the image.
        """
        inputs, (height, width) = model.spec.inputs, pixels.shape[:2]
        packed = inputs.pack(inputs(pixels))[None]
        sizes = np.array([inputs.scaled_size(height, width)], np.int32)
        return EmbeddedImage(self._embed(model.params, packed, sizes), height, width, key)

    def predict(
        self,
        model: PretrainedModel,
        image: EmbeddedImage,
        prompts: Prompts,
        *,
        multimask: bool,
        batch_size: int,
    ) -> Iterator[tuple[Float32[np.ndarray, "n masks rows columns"], np.ndarray]]:
        """Yields the logits of masks (n, M, h, w) and their predicted IoU (n, M) by batches.

        Args:
            model: SAM.
            image: features of an image.
            prompts: any number of prompts.
            multimask: whether to predict the masks of ambiguous prompts.
            batch_size: prompts per batch. Smaller batches are padded, so that few are compiled.
        """
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            padding = min(padded_size(len(part), 1), batch_size) - len(part)
            given = (part.points, part.labels, part.masks)
            points, labels, masks = (
                None if x is None else np.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1)), "edge")
                for x in given
            )
            found = self._predict(model.params, image.features, points, labels, masks, multimask)
            logits, scores = (
                np.asarray(found[name][0, : len(part)].astype(jnp.float32))
                for name in ("masks", "scores")
            )
            yield logits, scores
