"""From examples with boxes to the fields of a batch of detection.

An example of a source of boxes has `image`, `key` and

- `boxes`, float32 (n, 4): x0, y0, x1, y1 in pixels of the image;
- `names`: the class of each box, in words;
- `crowd`, optional, bool (n,): whether a box surrounds a group of objects;
- `vocabulary`, optional: names that may be asked of the image; those without a box are absent,
  unless they are in `not_exhaustive`;
- `negatives`, optional: names that are verified to be absent;
- `not_exhaustive`, optional: names of which some objects may have no box.

A training image is asked for the names of its boxes and for some that it does not show: verified
ones first, then random ones of the vocabulary (Gupta et al. 2019, LVIS; Minderer et al. 2022).
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vit_jax.data.augment import BoxAugmentation
from vit_jax.data.augment.boxed import BoxedImage
from vit_jax.data.broken import LEFT_OUT
from vit_jax.data.examples import check_templates
from vit_jax.data.sources.base import Source, brief, captions_of
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError

FIELDS = ("image", "tokens", "boxes", "labels")
"""Fields of a batch of detection. There is one more, "caption", see `detection_transform`."""

_MAX_IN_A_ROW = 100  # consecutive broken examples after which a mosaic is given up


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """Keys of `config.data.detection`.

    Attributes:
        max_boxes: boxes per image; smaller numbers are padded, of larger ones a random part is
            taken, and the rest is counted in the log.
        max_queries: names that are asked per image, as text; smaller numbers are padded.
        negatives: names per image that it does not show, as far as `max_queries` has room.
    """

    max_boxes: int = 100
    max_queries: int = 100
    negatives: int = 50

    def __post_init__(self) -> None:
        for name, least in (("max_boxes", 1), ("max_queries", 1), ("negatives", 0)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"config.data.detection.{name}={value}: expected at least {least}")


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
        parts = [_Part.of(example), *(self._another(rng) for _ in range(more))]
        images, names = [], list[str]()
        for part in parts:
            images.append(self.augment.read(part.image, part.boxes, len(names)))
            names += part.names
        image = self.augment(images, rng)
        left_out = collections.Counter({"crowds": sum(part.crowds for part in parts)})
        image = self._at_most(image, rng, left_out)
        shown = [names[row] for row in image.rows]
        positives = self._positives(shown, rng)
        batch: dict[str, Any] = {"image": self.augment.inputs.pack(image.image)}
        if "tokens" in self.fields:
            queries = [*positives, *self._negatives(positives, parts, rng)]
            batch["tokens"] = self._tokens(queries, rng)
        if "caption" in self.fields:
            batch["caption"] = self._caption(example, rng)
        targets = self._targets(image, shown, positives, left_out)
        batch |= dict(zip(("boxes", "labels"), targets, strict=True))
        return {**{name: batch[name] for name in self.fields}, LEFT_OUT: left_out}

    def _another(self, rng: np.random.Generator) -> "_Part":
        """A random example. A broken one is passed over; it counts when its own turn comes."""
        for _ in range(_MAX_IN_A_ROW):
            try:
                return _Part.of(self.source[self.source.draw_row(rng)])
            except (UserError, OSError) as error:
                last = error
        raise UserError(f"{_MAX_IN_A_ROW} examples in a row cannot be read, the last: {last}")

    def _at_most(
        self, image: BoxedImage, rng: np.random.Generator, left_out: collections.Counter[str]
    ) -> BoxedImage:
        """Keeps a random choice of `max_boxes` boxes."""
        count, most = len(image.boxes), self.config.max_boxes
        if count <= most:
            return image
        left_out["more than max_boxes"] += count - most
        keep = np.sort(rng.permutation(count)[:most])
        return dataclasses.replace(image, boxes=image.boxes[keep], rows=image.rows[keep])

    def _positives(self, shown: Sequence[str], rng: np.random.Generator) -> list[str]:
        """Distinct names of the boxes, a random choice where there are more than `max_queries`."""
        found = list(dict.fromkeys(shown))
        if "tokens" not in self.fields or len(found) <= self.config.max_queries:
            return found
        return [found[i] for i in np.sort(rng.permutation(len(found))[: self.config.max_queries])]

    def _negatives(
        self, positives: Sequence[str], parts: Sequence["_Part"], rng: np.random.Generator
    ) -> list[str]:
        """Names that the image does not show: verified ones, then others of the vocabulary."""
        count = min(self.config.negatives, self.config.max_queries - len(positives))
        # Also names whose boxes were cut off: some of the object may be left.
        excluded = {_words(name) for part in parts for name in part.possible}
        found: dict[str, str] = {}  # by the words of the prompt
        for pool in (_verified(parts), _common_vocabulary(parts)):
            for i in rng.permutation(len(pool)):
                if len(found) >= count:
                    return list(found.values())
                if (words := _words(pool[i])) not in excluded:
                    found.setdefault(words, pool[i])
        return list(found.values())

    def _targets(
        self,
        image: BoxedImage,
        shown: Sequence[str],
        positives: Sequence[str],
        left_out: collections.Counter[str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (max_boxes, 4) as centre and size, and the query of each; -1 for padding."""
        index = {name: i for i, name in enumerate(positives)}
        keep = [i for i, name in enumerate(shown) if name in index]
        if len(keep) < len(shown):
            left_out["names beyond max_queries"] += len(shown) - len(keep)
        boxes = np.zeros((self.config.max_boxes, 4), np.float32)
        labels = np.full(self.config.max_boxes, -1, np.int32)
        corners = image.boxes[keep]
        boxes[: len(keep), :2] = (corners[:, :2] + corners[:, 2:]) / 2
        boxes[: len(keep), 2:] = corners[:, 2:] - corners[:, :2]
        labels[: len(keep)] = [index[shown[i]] for i in keep]
        return boxes, labels

    def _tokens(self, queries: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """Prompts of the queries in one random template, and rows of zeros."""
        assert self.tokenizer is not None  # see detection_transform
        template = self.templates[int(rng.integers(len(self.templates)))]
        tokens = np.zeros((self.config.max_queries, self.tokenizer.context_length), np.int32)
        if queries:
            prompts = [template.format(_words(name)) for name in queries]
            tokens[: len(queries)] = self.tokenizer(prompts)
        return tokens

    def _caption(self, example: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        """A random caption in a random template."""
        captions = captions_of(example)
        caption = captions[int(rng.integers(len(captions)))]
        template = self.templates[int(rng.integers(len(self.templates)))]
        assert self.tokenizer is not None  # see detection_transform
        return self.tokenizer(template.format(caption))[0]


@dataclasses.dataclass(frozen=True)
class _Part:
    """What a batch needs of an example, without crowds.

    Attributes:
        image: image of any kind.
        boxes: x0, y0, x1, y1, px.
        names: name of each box.
        crowds: number of boxes of crowds.
        possible: names that the image shows or may show.
        negatives: names that are verified to be absent.
        vocabulary: names that may be asked.
    """

    image: Any
    boxes: np.ndarray
    names: list[str]
    crowds: int
    possible: frozenset[str]
    negatives: Sequence[str]
    vocabulary: Sequence[str]

    @classmethod
    def of(cls, example: dict[str, Any]) -> "_Part":
        boxes, names = check_boxes(example)
        single = ~np.asarray(example.get("crowd", np.zeros(len(names))), np.bool_)
        return cls(
            image=example["image"],
            boxes=boxes[single],
            names=[name for name, one in zip(names, single, strict=True) if one],
            crowds=int((~single).sum()),
            possible=frozenset([*names, *example.get("not_exhaustive", ())]),
            negatives=example.get("negatives", ()),
            vocabulary=example.get("vocabulary", ()),
        )


def check_boxes(example: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Checks the boxes of an example.

    Args:
        example: example of a source.

    Returns:
        `boxes`, float32 (n, 4), and `names`.

    Raises:
        UserError: the example has no boxes, or not one name for each of them.
    """
    where = example.get("key", "an example")
    if "boxes" not in example or "names" not in example:
        raise UserError(
            f"{where} has no boxes and names among the fields {sorted(example)}: expected a source "
            "of boxes, as coco:FILE.json or emoji_scenes:train"
        )
    boxes, names = np.asarray(example["boxes"], np.float32), list(example["names"])
    if boxes.shape != (len(names), 4) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{where} has boxes of shape {boxes.shape} and {brief(names)} as names: expected "
            "(n, 4) and n texts"
        )
    return boxes, names


def _check_source(source: Source) -> None:
    """Checks the boxes of the first example that can be read."""
    for index in range(min(len(source), _MAX_IN_A_ROW)):
        try:
            example = source.annotation(index)
        except (UserError, OSError):
            continue
        check_boxes(example)
        return


def _words(name: str) -> str:
    """A name as it stands in a prompt; data sets write underscores for spaces."""
    return name.replace("_", " ")


def _verified(parts: Iterable[_Part]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part.negatives))


def _common_vocabulary(parts: Sequence[_Part]) -> Sequence[str]:
    """Names that may be asked of all parts, which may come from different sources."""
    first, *others = (part.vocabulary for part in parts)
    different = [set(other) for other in others if other is not first]
    return [name for name in first if all(name in s for s in different)] if different else first


def detection_transform(
    source: Source,
    augment: BoxAugmentation,
    tokenizer: Tokenizer | None,
    templates: Sequence[str] = ("{}",),
    config: DetectionConfig | None = None,
    fields: Sequence[str] = FIELDS,
) -> DetectionTransform:
    """Builds the transform from an example to the fields of a batch of detection.

    The fields are, for C = max_queries names, N = max_boxes boxes and T tokens per name:
        "image": the augmented image, uint8 (height * width * 3,), packed;
        "tokens": prompts of the names of the boxes, then of names that the image does not show,
            then rows of zeros, int32 (C, T);
        "boxes": centre x, centre y, width, height, relative to the model's input, then rows of
            zeros, float32 (N, 4);
        "labels": row of `tokens` of each box, -1 for padding, int32 (N,);
        "caption": a random caption of the image, int32 (T,), if it is among `fields`.
    The number of boxes that are left out is under `LEFT_OUT`.

    Args:
        source: training source, from which mosaics take further images.
        augment: augmentation.
        tokenizer: tokenizer of the names.
        templates: prompt templates with one `{}`; one is drawn per example.
        config: sizes of a batch; by default those of `DetectionConfig`.
        fields: fields of a batch.

    Raises:
        UserError: there is no tokenizer or no template, the first example has no boxes, or images
            with captions are to be joined.
    """
    if tokenizer is None and {"tokens", "caption"} & {*fields}:
        raise UserError("the objective reads tokens, but the model has no tokenizer")
    if "caption" in fields and any(hasattr(each, "combine") for each in augment.transforms):
        raise UserError(
            "config.data.augment joins images, and a caption belongs to one image: expected an "
            "augmentation without mosaic"
        )
    check_templates(templates)
    _check_source(source)
    return DetectionTransform(
        source, augment, tokenizer, tuple(templates), config or DetectionConfig(), tuple(fields)
    )
