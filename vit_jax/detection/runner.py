"""Compiled calls of a model that compares boxes with embeddings of class prompts."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from vit_jax.detection import selection
from vit_jax.detection.finder import Finder, Found
from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.models.ops.boxes import cxcywh_to_xyxy
from vit_jax.models.regionclip.model import region_probabilities
from vit_jax.pretrained.model import PretrainedModel

_MAX_PROMPTS = 64  # rows of the largest compiled call of the text tower
_FEWEST_CLASSES = 8  # smallest number of classes that is compiled
QUERY = "query image"  # name of the class of a query image


class EmbeddingRunner:
    """A model's compiled functions and the embeddings of class prompts that it has computed."""

    def __init__(self, model: PretrainedModel) -> None:
        """Declares the functions, which are compiled at first use.

        Args:
            model: detector, or model that classifies given boxes.
        """
        definition, inputs = model.definition, model.spec.inputs

        @jax.jit
        def best_classes(
            params: Params, packed: jax.Array, queries: jax.Array, mask: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            images = inputs.normalize(packed)
            found = definition.bind(params).detect(images, queries[None], mask[None])
            logits = found["logits"]
            best = jnp.argmax(logits, axis=-1)
            return cxcywh_to_xyxy(found["boxes"]), jax.nn.sigmoid(jnp.max(logits, axis=-1)), best

        @jax.jit
        def classes_of_boxes(
            params: Params, packed: jax.Array, boxes: jax.Array, queries: jax.Array, mask: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            images = inputs.normalize(packed)
            module = definition.bind(params)
            logits = module.classify_regions(images, boxes, queries[None], mask[None])
            return jnp.max(region_probabilities(logits), axis=-1), jnp.argmax(logits, axis=-1)

        self._best_classes, self._classes_of_boxes = best_classes, classes_of_boxes
        self._kept: dict[tuple[str, ...], np.ndarray] = {}
        self._params = model.params

    def find_names(
        self,
        model: PretrainedModel,
        names: Sequence[str],
        templates: Sequence[str],
        text_threshold: float | None,
    ) -> Finder:
        """Returns the search for names. A box counts for its most probable name.

        Args:
            model: detector.
            names: names of classes, all different.
            templates: prompt templates with one `{}`, whose embeddings are averaged.
            text_threshold: None.

        Raises:
            UserError: a prompt that is longer than the model's context, or a `text_threshold`.
        """
        if text_threshold is not None:
            raise UserError(
                f"text_threshold={text_threshold} is for models that read captions, as "
                f"grounding_dino_tiny; found {model.kind}"
            )
        queries = self.embed_classes(model, names, templates)
        return self._finder(model, queries, names, 0.1, 1.0, selection.select)

    def find_like(self, model: PretrainedModel, query_image: Any) -> Finder:
        """Returns the search for objects like that of an image.

        Args:
            model: detector.
            query_image: image of any kind.
        """
        pixels = model.preprocess(query_image)[None]
        queries = np.asarray(model.apply("embed_image_query", pixels)[0])
        return self._finder(model, queries, [QUERY], 0.0, 0.3, selection.select_relative)

    def _finder(
        self, model: PretrainedModel, queries: np.ndarray, classes: Sequence[str], *defaults: Any
    ) -> Finder:
        padded = _padded_classes(queries)

        def find(packed: np.ndarray, sizes: np.ndarray) -> Found:
            del sizes
            boxes, scores, labels = self._best_classes(model.params, packed, *padded)
            return Found(np.asarray(boxes), np.asarray(scores), np.asarray(labels, np.int32))

        return Finder(find, list(classes), *defaults)

    def classes_of_boxes(
        self,
        model: PretrainedModel,
        packed: np.ndarray,
        boxes: Float32[np.ndarray, "batch n 4"],
        queries: Float[np.ndarray, "classes dim"],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Computes the most probable classes of given boxes.

        Args:
            model: model that classifies given boxes.
            packed: packed images (B, N), uint8.
            boxes: center x, center y, width, height relative to the input.
            queries: embeddings of classes (C, D).

        Returns:
            Probabilities (B, n) and classes (B, n).
        """
        found = self._classes_of_boxes(model.params, packed, boxes, *_padded_classes(queries))
        scores, labels = found
        return np.asarray(scores), np.asarray(labels, np.int32)

    def embed_classes(
        self, model: PretrainedModel, names: Sequence[str], templates: Sequence[str]
    ) -> Float32[np.ndarray, "classes dim"]:
        """Computes embeddings of classes: the normalised mean over prompt templates.

        Args:
            model: detector.
            names: names of classes, all different.
            templates: prompt templates with one `{}`.

        Returns:
            (C, D), of length 1.

        Raises:
            UserError: a prompt that is longer than the model's context.
        """
        if self._params is not model.params:
            self._params, self._kept = model.params, {}
        prompts = {name: tuple(t.format(name) for t in templates) for name in names}
        missing = [each for each in prompts.values() if each not in self._kept]
        if missing:
            texts = [text for each in missing for text in each]
            embedded = embed_texts(texts, model, "embed_queries")
            mean = embedded.reshape(len(missing), len(templates), -1).mean(axis=1)
            mean /= np.linalg.norm(mean, axis=1, keepdims=True)
            self._kept.update(zip(missing, mean, strict=True))
        return np.stack([self._kept[each] for each in prompts.values()])


def embed_texts(
    texts: Sequence[str], model: PretrainedModel, method: str, **options: Any
) -> Float32[np.ndarray, "texts dim"]:
    """Computes embeddings of prompts in few compiled sizes.

    Args:
        texts: prompts.
        model: model with a text tower.
        method: name of its method, from tokens (B, T) to embeddings.
        **options: keyword arguments of the method.

    Raises:
        UserError: a prompt that is longer than the model's context.
    """
    tokenizer = model.tokenize
    for text, length in zip(texts, tokenizer.lengths(texts), strict=True):
        if length > tokenizer.context_length:
            raise UserError(
                f"the prompt {text!r} has {length} tokens: expected at most "
                f"{tokenizer.context_length}, the context of the model"
            )
    tokens, rows = tokenizer(texts), []
    for start in range(0, len(texts), _MAX_PROMPTS):
        part = tokens[start : start + _MAX_PROMPTS]
        padding = padded_size(len(part), 1) - len(part)
        padded = np.pad(part, ((0, padding), (0, 0)), mode="edge")
        rows.append(np.asarray(model.apply(method, padded, **options))[: len(part)])
    return np.concatenate(rows)


def _padded_classes(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of classes, padded with zeros, and which of them exist."""
    count = len(queries)
    pad = padded_size(count, _FEWEST_CLASSES) - count
    return np.pad(queries, ((0, pad), (0, 0))), np.arange(count + pad) < count


def padded_size(count: int, smallest: int) -> int:
    """Returns the next power of two, so that few shapes are compiled.

    Args:
        count: size.
        smallest: lower bound of the result.
    """
    return max(smallest, 1 << (count - 1).bit_length())
