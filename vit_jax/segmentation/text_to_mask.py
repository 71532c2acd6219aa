"""Masks of words by one model: CLIPSeg, or the patches of a dual encoder without training."""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from vit_jax.data.images import read_image
from vit_jax.data.sources.listing import LeftOut
from vit_jax.detection.images import Images, list_images
from vit_jax.detection.results import check_fractions, check_names
from vit_jax.detection.runner import QUERY, embed_texts, padded_size
from vit_jax.errors import UserError
from vit_jax.evaluators import prompts
from vit_jax.inputs import ImageInputs
from vit_jax.models.clip.dense import check_dense, embed_patches
from vit_jax.models.definition import Params
from vit_jax.models.sizes import grid_of
from vit_jax.pretrained.model import PretrainedModel
from vit_jax.segmentation.results import Segmentation

Pixels = UInt8[np.ndarray, "_height _width _channels"]
Conditions = Float32[np.ndarray, "names dim"]
Logits = Float32[np.ndarray, "rows columns"]
# A mask (H, W), the probabilities of all pixels, and the logits of the model.
Found = tuple[Bool[np.ndarray, "h w"], Float32[np.ndarray, "h w"], Logits]
_MAX_PROMPTS = 16  # masks of the largest compiled call


class WordRunner(abc.ABC):
    """Finds the pixels of words with one model.

    The whole image is scaled to the model's input, height and width independently, whatever crop
    its preprocessing has. Logits are scaled to the pixels of the image, linearly.

    Attributes:
        threshold: default of the probability that a pixel exceeds.
        inputs: preprocessing.
    """

    threshold: float
    inputs: ImageInputs

    def __init__(self, model: PretrainedModel) -> None:
        """Stores the preprocessing.

        Args:
            model: model that the runner is for.
        """
        inputs = model.spec.inputs
        self.inputs = dataclasses.replace(
            inputs, resize="squash", crop_fraction=1.0, shortest_edge=0
        )

    def segment(
        self,
        model: PretrainedModel,
        images: Any,
        names: Sequence[str] | None,
        *,
        query_image: Any = None,
        threshold: float | None = None,
        templates: str | Sequence[str] = ("{}",),
    ) -> Segmentation | list[Segmentation]:
        """Finds the masks of names, in their order; see `segment.segment`.

        The score of a mask is the mean probability of its pixels. Names without a pixel have no
        mask.

        Args:
            model: model that the runner is for.
            images: an image, a list, or a folder, of which images that cannot be read are left out.
            names: names or phrases; None with a query image.
            query_image: image of an object to look for; None for none.
            threshold: probability that a pixel of a mask exceeds; None for the default.
            templates: prompt templates, whose embeddings are averaged.

        Raises:
            UserError: no names, an empty or too long one; an image that cannot be read.
        """
        check_fractions(threshold=threshold)
        limit = self.threshold if threshold is None else threshold
        listed = list_images(images)
        if query_image is not None:
            given, words = [QUERY], [QUERY]
            pixels = read_image(query_image, "query_image", max_pixels=model.max_image_pixels)
            conditions = self.embed_example(model, pixels)
        else:
            words = check_names(names)
            given = list(names or ())
            conditions = self.embed_words(model, words, prompts.templates(templates))
        found = []
        for row, pixels in _read_all(listed, model.max_image_pixels):
            masks = self.find(model, pixels, conditions, limit)
            found.append(_result(listed.keys[row], pixels.shape[:2], masks, words, given))
        return found[0] if listed.single else found

    @abc.abstractmethod
    def embed_words(
        self, model: PretrainedModel, names: Sequence[str], templates: Sequence[str]
    ) -> Conditions:
        """Computes embeddings of names, the mean over templates.

        Raises:
            UserError: a prompt that is longer than the model's context.
        """

    @abc.abstractmethod
    def embed_example(self, model: PretrainedModel, pixels: Pixels) -> Conditions:
        """Computes the embedding of an example image.

        Raises:
            UserError: the model takes words only.
        """

    @abc.abstractmethod
    def find(
        self, model: PretrainedModel, pixels: Pixels, conditions: Conditions, threshold: float
    ) -> Iterator[Found]:
        """Finds the pixels of each condition in an image."""


class PromptRunner(WordRunner):
    """CLIPSeg: an independent mask for each prompt."""

    threshold = 0.5

    def __init__(self, model: PretrainedModel) -> None:
        """Declares the functions, which are compiled at first use; see `WordRunner`."""
        super().__init__(model)
        definition, architecture, inputs = model.definition, model.spec.architecture, self.inputs
        grid = grid_of(inputs.size, architecture.image.patch_size)

        @jax.jit
        def embed(params: Params, pixels: jax.Array) -> list[jax.Array]:
            module = definition.bind(params)
            return module.features(inputs.normalize(pixels), architecture.layers)

        @jax.jit
        def decode(params: Params, blocks: list[jax.Array], conditions: jax.Array) -> jax.Array:
            return definition.bind(params).decoder(blocks, conditions[None], grid)[0]

        self._embed, self._decode = embed, decode

    def embed_words(
        self, model: PretrainedModel, names: Sequence[str], templates: Sequence[str]
    ) -> Conditions:
        """Computes embeddings of any length; see `WordRunner.embed_words`."""
        return _mean_over_templates(model, names, templates)

    def embed_example(self, model: PretrainedModel, pixels: Pixels) -> Conditions:
        """Computes the embedding of the image (section 3.3 of the paper)."""
        images = self.inputs.normalize(self.inputs(pixels)[None])
        return np.asarray(model.encode_image(images))

    def find(
        self, model: PretrainedModel, pixels: Pixels, conditions: Conditions, threshold: float
    ) -> Iterator[Found]:
        """Finds the pixels whose probability exceeds a threshold; see `WordRunner.find`."""
        blocks = self._embed(model.params, self.inputs(pixels)[None])
        for start in range(0, len(conditions), _MAX_PROMPTS):
            part = conditions[start : start + _MAX_PROMPTS]
            for logits in np.asarray(self._decode(model.params, blocks, _padded(part)))[
                : len(part)
            ]:
                probability = 1 / (1 + np.exp(-enlarge(logits, *pixels.shape[:2])))
                yield probability > threshold, probability, logits


class PatchRunner(WordRunner):
    """A dual encoder: each pixel belongs to its most similar name (MaskCLIP, Zhou et al. 2022)."""

    threshold = 0.0

    def __init__(self, model: PretrainedModel) -> None:
        """Declares the function, which is compiled at first use; see `WordRunner`.

        Raises:
            UserError: see `models.clip.dense.check_dense`.
        """
        check_dense(model.spec.architecture)
        super().__init__(model)
        definition, inputs = model.definition, self.inputs

        @jax.jit
        def compare(params: Params, pixels: jax.Array, words: jax.Array) -> jax.Array:
            module = definition.bind(params)
            patches = embed_patches(module, inputs.normalize(pixels))[0]
            scale, _ = module.logit_parameters()
            return scale * jnp.einsum("hwd,nd->nhw", patches, words)

        self._compare = compare

    def embed_words(
        self, model: PretrainedModel, names: Sequence[str], templates: Sequence[str]
    ) -> Conditions:
        """Computes embeddings of length 1; see `WordRunner.embed_words`."""
        mean = _mean_over_templates(model, names, templates, normalize=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def embed_example(self, model: PretrainedModel, pixels: Pixels) -> Conditions:
        """Refuses an example image; see `WordRunner.embed_example`."""
        raise UserError(
            f"{model.kind} models compare patches with words: expected names; found a query_image, "
            "which CLIPSeg takes, as clipseg_rd64_refined"
        )

    def find(
        self, model: PretrainedModel, pixels: Pixels, conditions: Conditions, threshold: float
    ) -> Iterator[Found]:
        """Gives each pixel to its most similar name; see `WordRunner.find`.

        A pixel whose probability among all names does not exceed the threshold has none.
        """
        found = self._compare(model.params, self.inputs(pixels)[None], _padded(conditions))
        logits = np.asarray(found)[: len(conditions)]
        size = pixels.shape[:2]
        best, total = (np.full(size, -np.inf, np.float32) for _ in range(2))
        labels = np.zeros(size, np.int32)
        for name, each in enumerate(logits):  # one name at a time, for large images
            large = enlarge(each, *size)
            labels[large > best] = name
            np.maximum(best, large, out=best)
            np.logaddexp(total, large, out=total)
        probability = np.exp(best - total)
        above = probability > threshold
        for name, each in enumerate(logits):
            yield (labels == name) & above, probability, each


def enlarge(logits: Logits, height: int, width: int) -> Float32[np.ndarray, "{height} {width}"]:
    """Resizes logits of the whole image to its pixels, linearly between centres.

    Args:
        logits: (h, w).
        height: height of the image, px.
        width: width of the image, px.
    """
    return cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)


def _mean_over_templates(
    model: PretrainedModel, names: Sequence[str], templates: Sequence[str], **options: Any
) -> Conditions:
    texts = [template.format(name) for name in names for template in templates]
    embedded = embed_texts(texts, model, "encode_text", **options)
    return embedded.reshape(len(names), len(templates), -1).mean(axis=1)


def _padded(conditions: Conditions) -> Float32[np.ndarray, "padded dim"]:
    """Conditions and rows of zeros, so that few sizes are compiled."""
    count = len(conditions)
    return np.pad(conditions, ((0, padded_size(count, 1) - count), (0, 0)))


def _read_all(listed: Images, max_pixels: int) -> Iterator[tuple[int, Pixels]]:
    """The row and the pixels of each image; those of a folder may be left out."""
    left_out = LeftOut()
    for row, source in enumerate(listed.sources):
        try:
            pixels = read_image(source, listed.name(row), max_pixels=max_pixels)
        except UserError:
            if not listed.folder:
                raise
            left_out.add("that cannot be read", listed.keys[row])
            continue
        yield row, pixels
    left_out.log(listed.folder)
    if sum(count for count, _ in left_out.counts.values()) == len(listed.sources):
        raise UserError(f"{listed.folder}: none of {len(listed.sources)} images can be read")


def _result(
    key: str,
    size: tuple[int, ...],
    found: Iterator[Found],
    words: Sequence[str],
    given: Sequence[str],
) -> Segmentation:
    """The masks that are not empty."""
    height, width = size
    masks, scores, names, kept = [], [], list[str](), []
    shape = (0, 0)
    for name, (mask, probability, logits) in zip(words, found, strict=True):
        shape = logits.shape
        if mask.any():
            masks.append(mask)
            scores.append(probability[mask].mean(dtype=np.float64))
            names.append(name)
            kept.append(logits)
    return Segmentation(
        key=key,
        height=height,
        width=width,
        masks=np.array(masks, np.bool_).reshape(-1, height, width),
        scores=np.array(scores, np.float32),
        labels=np.array([list(given).index(name) for name in names], np.int32),
        names=names,
        logits=np.array(kept, np.float32).reshape(-1, *shape),
    )
