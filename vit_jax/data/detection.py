"""From examples with boxes to the fields of a batch of detection.

An example of a source of boxes has `image`, `key` and

- `boxes`, float32 (n, 4): x0, y0, x1, y1 in pixels of the image;
- `names`: the class of each box, in words;
- `crowd`, optional, bool (n,): whether a box surrounds a group of objects;
- `vocabulary`, optional: names that may be asked of the image; those without a box are absent,
  unless they are in `not_exhaustive`;
- `negatives`, optional: names that are verified to be absent;
- `not_exhaustive`, optional: names of which some objects may have no box;
- `captions` and `spans`, optional: a caption, and the characters of the phrase of each box;
- `segmentation`, optional: the mask of each box, see `data.masks`, or None;
- `ignored`, optional, bool (H, W): pixels of which is not said what they show.

A training image is asked for the names of its boxes and for some that it does not show: verified
ones first, then random ones of the vocabulary (Gupta et al. 2019, LVIS; Minderer et al. 2022). They
are prompts of their own, or one caption in random order (Li et al. 2022, GLIP, section 3.1).
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.augment import BoxAugmentation
from vit_jax.data.augment.boxed import BoxedImage
from vit_jax.data.boxed_examples import (
    MAX_IN_A_ROW,
    Part,
    check_source,
    common_vocabulary,
    verified_negatives,
    words_of,
)
from vit_jax.data.broken import LEFT_OUT
from vit_jax.data.captions import Caption, join_names, split_names
from vit_jax.data.examples import check_templates
from vit_jax.data.masked_examples import PlacedMasks
from vit_jax.data.sources.base import Source, captions_of
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError

FIELDS = ("image", "tokens", "boxes", "labels")
"""Fields of a batch of class prompts. For others see `detection_transform`."""

MASKS = {"masks", "query_masks"}
"""Fields for which a source needs masks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """Keys of `config.data.detection`.

    Attributes:
        max_boxes: boxes per image; smaller numbers are padded, of larger ones a random part is
            taken, and the rest is counted in the log.
        max_queries: names that are asked per image, as text; smaller numbers are padded.
        negatives: names per image that it does not show, as far as `max_queries` has room.
        mask_stride: pixels of the model's input per cell of a mask, along each axis.
    """

    max_boxes: int = 100
    max_queries: int = 100
    negatives: int = 50
    mask_stride: int = 4

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name == "negatives" else 1
            if (value := getattr(self, field.name)) < least:
                raise UserError(
                    f"config.data.detection.{field.name}={value}: expected at least {least}"
                )

    def mask_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the numbers of rows and columns of a mask.

        Args:
            height: height of the model's input, px.
            width: width of the model's input, px.

        Raises:
            UserError: `mask_stride` does not divide the size.
        """
        if height % self.mask_stride or width % self.mask_stride:
            raise UserError(
                f"config.data.detection.mask_stride={self.mask_stride}: expected a divisor of the "
                f"model's image size {(height, width)}"
            )
        return height // self.mask_stride, width // self.mask_stride


@dataclasses.dataclass(frozen=True)
class DetectionTransform:
    """Reads the fields of a batch from one example. See `detection_transform`."""

    source: Source
    augment: BoxAugmentation
    tokenizer: Tokenizer | None
    templates: tuple[str, ...]
    config: DetectionConfig
    fields: tuple[str, ...] = FIELDS

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Transforms an example.

        Args:
            example: example of the source.
            rng: source of randomness.

        Raises:
            UserError: the image cannot be decoded, or the example has no boxes.
        """
        more = self.augment.count(rng) - 1
        parts = [self._part(example), *(self._another(rng) for _ in range(more))]
        images, names = [], list[str]()
        for part in parts:
            images.append(self.augment.read(part.image, part.boxes, len(names)))
            names += part.names
        image = self.augment(images, rng)
        left_out = collections.Counter({"crowds": sum(part.crowds for part in parts)})
        batch: dict[str, Any] = {
            "image": self.augment.inputs.pack(image.image),
            "sizes": np.array(image.filled, np.int32),
        }
        if MASKS & {*self.fields}:
            sizes = [each.size for each in images]
            masks = PlacedMasks(image, parts, sizes, self.augment.inputs.size, self._grid)
            batch["valid"] = masks.valid()
            if "query_masks" in self.fields:
                batch |= self._masked_prompts(masks.by_name(left_out), parts, rng, left_out)
                return {**{name: batch[name] for name in self.fields}, LEFT_OUT: left_out}
            image = masks.attach(self._at_most(image, rng, left_out), left_out)
        else:
            image = self._at_most(image, rng, left_out)
        shown = [names[row] for row in image.rows]
        if "positive_map" in self.fields:
            batch |= self._phrases(image, shown, parts, rng, left_out)
        else:
            batch |= self._prompts(image, shown, parts, rng, left_out)
        if "caption" in self.fields:
            batch["caption"] = self._caption(example, rng)
        return {**{name: batch[name] for name in self.fields}, LEFT_OUT: left_out}

    def _part(self, example: dict[str, Any]) -> Part:
        """An example; masks of prompts include crowds, which are objects of their name too."""
        return Part.of(example, with_crowds="query_masks" in self.fields)

    def _another(self, rng: np.random.Generator) -> Part:
        """A random example. A broken one is passed over; it counts when its own turn comes."""
        for _ in range(MAX_IN_A_ROW):
            try:
                return self._part(self.source[self.source.draw_row(rng)])
            except (UserError, OSError) as error:
                last = error
        raise UserError(f"{MAX_IN_A_ROW} examples in a row cannot be read, the last: {last}")

    def _at_most(
        self, image: BoxedImage, rng: np.random.Generator, left_out: collections.Counter[str]
    ) -> BoxedImage:
        """Keeps a random choice of `max_boxes` boxes."""
        count, most = len(image.boxes), self.config.max_boxes
        if count <= most:
            return image
        left_out["more than max_boxes"] += count - most
        return image.select(np.sort(rng.permutation(count)[:most]))

    def _masked_prompts(
        self,
        masks: dict[str, np.ndarray],
        parts: Sequence[Part],
        rng: np.random.Generator,
        left_out: collections.Counter[str],
    ) -> dict[str, np.ndarray]:
        """Prompts of names, and the mask of each; empty ones for negatives and padding."""
        positives = self._positives(list(masks), rng)
        left_out["names beyond max_queries"] += len(masks) - len(positives)
        queries = [*positives, *self._negatives(positives, parts, rng)]
        padded = np.zeros((self.config.max_queries, *self._grid), np.bool_)
        for i, name in enumerate(positives):
            padded[i] = masks[name]
        return {"tokens": self._tokens(queries, rng), "query_masks": padded}

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns of a mask."""
        return self.config.mask_size(*self.augment.inputs.size)

    def _positives(self, shown: Sequence[str], rng: np.random.Generator) -> list[str]:
        """Distinct names of the boxes, a random choice where there are more than `max_queries`."""
        found = list(dict.fromkeys(shown))
        if "tokens" not in self.fields or len(found) <= self.config.max_queries:
            return found
        return [found[i] for i in np.sort(rng.permutation(len(found))[: self.config.max_queries])]

    def _negatives(
        self, positives: Sequence[str], parts: Sequence[Part], rng: np.random.Generator
    ) -> list[str]:
        """Names that the image does not show: verified ones, then others of the vocabulary."""
        count = min(self.config.negatives, self.config.max_queries - len(positives))
        # Also names whose boxes were cut off: some of the object may be left.
        excluded = {words_of(name) for part in parts for name in part.possible}
        found: dict[str, str] = {}  # by the words of the prompt
        for pool in (verified_negatives(parts), common_vocabulary(parts)):
            for i in rng.permutation(len(pool)):
                if len(found) >= count:
                    return list(found.values())
                if (words := words_of(pool[i])) not in excluded:
                    found.setdefault(words, pool[i])
        return list(found.values())

    def _prompts(
        self,
        image: BoxedImage,
        shown: Sequence[str],
        parts: Sequence[Part],
        rng: np.random.Generator,
        left_out: collections.Counter[str],
    ) -> dict[str, np.ndarray]:
        """Prompts of names, boxes, and the prompt of each box; -1 for padding."""
        found, positives = {}, self._positives(shown, rng)
        if "tokens" in self.fields:
            queries = [*positives, *self._negatives(positives, parts, rng)]
            found["tokens"] = self._tokens(queries, rng)
        index = {name: i for i, name in enumerate(positives)}
        keep = [i for i, name in enumerate(shown) if name in index]
        if len(keep) < len(shown):
            left_out["names beyond max_queries"] += len(shown) - len(keep)
        labels = np.full(self.config.max_boxes, -1, np.int32)
        labels[: len(keep)] = [index[shown[i]] for i in keep]
        return {**found, **self._padded(image.select(np.array(keep, np.int64))), "labels": labels}

    def _phrases(
        self,
        image: BoxedImage,
        shown: Sequence[str],
        parts: Sequence[Part],
        rng: np.random.Generator,
        left_out: collections.Counter[str],
    ) -> dict[str, np.ndarray]:
        """A caption, boxes, and the tokens of the phrase of each box."""
        assert self.tokenizer is not None  # see detection_transform
        own = parts[0].caption if len(parts) == 1 else None
        if own is None:
            names, joined = self._join(shown, parts, rng)
            keep = [i for i, name in enumerate(shown) if name in names]
            caption = Caption(joined.text, [joined.spans[names.index(shown[i])] for i in keep])
        else:
            keep = list(range(len(shown)))
            caption = Caption(own.text, [own.spans[row] for row in image.rows])
        tokens, of_box = caption.tokens(self.tokenizer)
        exist = of_box.any(axis=1)
        left_out["phrases beyond the context or max_queries"] += int(len(shown) - exist.sum())
        positive_map = np.zeros((self.config.max_boxes, len(tokens)), np.bool_)
        positive_map[: exist.sum()] = of_box[exist]
        kept = image.select(np.array(keep, np.int64)[exist])
        return {"tokens": tokens, "positive_map": positive_map, **self._padded(kept)}

    def _join(
        self, shown: Sequence[str], parts: Sequence[Part], rng: np.random.Generator
    ) -> tuple[list[str], Caption]:
        """Names of the boxes and others, as far as the context has room, in random order."""
        assert self.tokenizer is not None  # see detection_transform
        positives = self._positives(shown, rng)
        names = [*positives, *self._negatives(positives, parts, rng)]
        template = self._template(rng)
        fitting = split_names([words_of(name) for name in names], self.tokenizer, template)[0][0]
        names = [names[i] for i in rng.permutation(len(fitting))]
        return names, join_names([words_of(name) for name in names], template)

    def _template(self, rng: np.random.Generator) -> str:
        return self.templates[int(rng.integers(len(self.templates)))]

    def _padded(self, image: BoxedImage) -> dict[str, np.ndarray]:
        """Boxes (max_boxes, 4) as centre and size, and masks if there are; zeros as padding."""
        count, corners = len(image.boxes), image.boxes
        boxes = np.zeros((self.config.max_boxes, 4), np.float32)
        boxes[:count, :2] = (corners[:, :2] + corners[:, 2:]) / 2
        boxes[:count, 2:] = corners[:, 2:] - corners[:, :2]
        if image.masks is None:
            return {"boxes": boxes}
        masks = np.zeros((self.config.max_boxes, *self._grid), np.bool_)
        masks[:count] = image.masks
        return {"boxes": boxes, "masks": masks}

    def _tokens(self, queries: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """Prompts of the queries in one random template, and rows of zeros."""
        assert self.tokenizer is not None  # see detection_transform
        template = self._template(rng)
        tokens = np.zeros((self.config.max_queries, self.tokenizer.context_length), np.int32)
        if queries:
            prompts = [template.format(words_of(name)) for name in queries]
            tokens[: len(queries)] = self.tokenizer(prompts)
        return tokens

    def _caption(self, example: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        """A random caption in a random template."""
        captions = captions_of(example)
        caption = captions[int(rng.integers(len(captions)))]
        template = self._template(rng)
        assert self.tokenizer is not None  # see detection_transform
        return self.tokenizer(template.format(caption))[0]


def detection_transform(
    source: Source,
    augment: BoxAugmentation,
    tokenizer: Tokenizer | None,
    templates: Sequence[str] = ("{}",),
    config: DetectionConfig | None = None,
    fields: Sequence[str] = FIELDS,
) -> DetectionTransform:
    """Builds the transform from an example to the fields of a batch of detection.

    The fields are, for C = max_queries names, N = max_boxes boxes and T tokens per text:
        "image": the augmented image, uint8 (height * width * 3,), packed;
        "sizes": height and width of the image on the model's input without padding, int32 (2,);
        "tokens": prompts of the names of the boxes, then of names that the image does not show,
            then rows of zeros, int32 (C, T);
        "boxes": centre x, centre y, width, height, relative to the model's input without its
            padding, then rows of zeros, float32 (N, 4);
        "labels": row of `tokens` of each box, -1 for padding, int32 (N,);
        "caption": a random caption of the image, int32 (T,);
        "masks": visible part of each object, on a grid of h x w cells over the model's input, then
            empty ones, bool (N, h, w); objects without a visible cell are left out;
        "valid": cells that show the image and that are annotated, bool (h, w).
    With "query_masks" instead of "boxes" and "labels" the prompts have masks:
        "query_masks": all objects of each name in "tokens", with crowds, bool (C, h, w); empty for
            names that the image does not show, and for padding.
    With "positive_map" instead of "labels" the image has one caption, its own one or the names in
    random order:
        "tokens": the caption, int32 (T,);
        "positive_map": tokens of the phrase of each box, none for padding, bool (N, T).
    The number of boxes that are left out is under `LEFT_OUT`.

    Args:
        source: training source, from which mosaics take further images.
        augment: augmentation.
        tokenizer: tokenizer of the names.
        templates: prompt templates with one `{}`; one is drawn per example.
        config: sizes of a batch; by default those of `DetectionConfig`.
        fields: fields of a batch.

    Raises:
        UserError: there is no tokenizer or no template, the tokenizer does not report characters,
            the first example has no boxes or masks, `mask_stride` does not divide the model's image
            size, or images with captions are to be joined.
    """
    if tokenizer is None and {"tokens", "caption"} & {*fields}:
        raise UserError("the objective reads tokens, but the model has no tokenizer")
    if "caption" in fields and any(hasattr(each, "combine") for each in augment.transforms):
        raise UserError(
            "config.data.augment joins images, and a caption belongs to one image: expected an "
            "augmentation without mosaic"
        )
    if tokenizer is not None and "positive_map" in fields:
        tokenizer.with_spans("")  # refuses a vocabulary that does not report characters
    check_templates(templates)
    sizes = config or DetectionConfig()
    if masks := bool(MASKS & {*fields}):
        sizes.mask_size(*augment.inputs.size)  # refuses a stride that does not fit
    check_source(source, masks=masks)
    return DetectionTransform(source, augment, tokenizer, tuple(templates), sizes, tuple(fields))
