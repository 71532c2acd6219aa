"""A detector that reads captions, over all images of a source, on all devices and processes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from vit_jax.data.images import read_image
from vit_jax.data.sources import Source
from vit_jax.evaluators.detector import ImagePass, Selection
from vit_jax.evaluators.embedding import Embedder
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


class CaptionPass(ImagePass):
    """A detector that reads names in captions.

    The logit of a class is that of the mean probability of its tokens (GLIP, Li et al. 2022;
    Grounding DINO); with a centerness, of the square root of their product, as GLIP's authors do.
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
        super().__init__(embedder, source)
        self._select, self._captions = select, captions
        self._parts = max(map(len, captions))
        self._names = max(len(each.classes) for image in captions for each in image)

    def joined(self, row: int, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """What is selected for each caption of the image, joined along the first axis."""
        return tuple(np.concatenate(each[: len(self._captions[row])]) for each in arrays)

    def read(self, row: int) -> dict[str, np.ndarray]:
        """The packed image, its sizes before and after scaling, and its captions."""
        embedder, captions = self._embedder, self._captions[row]
        image = read_image(self._source[row]["image"], max_pixels=embedder.max_image_pixels)
        height, width = image.shape[:2]
        # The first caption stands in for those that other images have more.
        padded = [*captions, *[captions[0]] * (self._parts - len(captions))]
        classes = np.full((self._parts, self._names), -1, np.int32)
        of_class = np.zeros((self._parts, self._names, len(padded[0].tokens)), np.bool_)
        for part, each in enumerate(padded):
            classes[part, : len(each.classes)] = each.classes
            of_class[part, : len(each.classes)] = each.of_class
        return {
            "image": embedder.inputs.pack(embedder.inputs(image)),
            "size": np.array(embedder.inputs.scaled_size(height, width), np.int32),
            "extent": np.array([width, height] * 2, np.float32),
            "tokens": np.stack([each.tokens for each in padded]),
            "classes": classes,
            "of_class": of_class,
        }

    def detect(self, model: Any, batch: dict[str, jax.Array], *shared: Any) -> tuple[Any, ...]:
        """See `ImagePass.detect`; the selected arrays are (B, captions, ...)."""
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
        found = jax.lax.map(of_caption, tuple(jnp.moveaxis(batch[key], 1, 0) for key in keys))
        finite, *selected = (jnp.moveaxis(each, 0, 1) for each in found)
        return jnp.all(finite, axis=1), *selected
