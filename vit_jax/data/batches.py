"""The fields of a batch that an objective reads: their transform and their shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.data.augment import parse_augmentation, parse_box_augmentation
from vit_jax.data.broken import Transform
from vit_jax.data.crops import FIELDS as CROPS
from vit_jax.data.crops import Crops, CropsConfig, crops_transform
from vit_jax.data.detection import MASKS, DetectionConfig, detection_transform
from vit_jax.data.examples import OtherTokens, example_transform
from vit_jax.data.images import MAX_PIXELS
from vit_jax.data.sources.base import Source
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs


def batch_transform(
    fields: Sequence[str],
    source: Source,
    augment: str,
    inputs: ImageInputs,
    *,
    tokenizer: Tokenizer | None,
    templates: Sequence[str] = ("{}",),
    max_pixels: int = MAX_PIXELS,
    detection: DetectionConfig | None = None,
    crops: Crops | None = None,
    captions_per_image: int = 1,
    other_tokens: Mapping[str, OtherTokens] | None = None,
) -> Transform:
    """Builds the transform from an example to the fields that an objective reads.

    Args:
        fields: see `examples.example_transform`; with boxes or masks, see
            `detection.detection_transform`; with crops, see `crops.crops_transform`.
        source: source of the examples.
        augment: augmentation as text, see `augment`.
        inputs: the model's preprocessing.
        tokenizer: tokenizer, for "tokens" and "captions".
        templates: prompt templates with one `{}`, for "tokens" and "captions".
        max_pixels: see `images.read_image`.
        detection: sizes of a batch of detection; by default those of `DetectionConfig`.
        crops: shapes of crops, for "global_crops".
        captions_per_image: number of captions, for "captions".
        other_tokens: tokens for other models, see `examples.example_transform`.

    Raises:
        UserError: an unknown field, an augmentation that does not fit, a source without boxes, or
            changed keys of detection, crops or captions without fields of theirs.
    """
    if captions_per_image < 1:
        raise UserError(f"config.data.captions_per_image={captions_per_image}: expected 1 or more")
    if captions_per_image > 1 and "captions" not in fields:
        raise UserError(
            f"config.data.captions_per_image={captions_per_image} applies to the objective "
            f"'contrastive'; this one reads {', '.join(fields)}"
        )
    reads_crops = bool({*CROPS} & {*fields})
    if crops is not None and not reads_crops and crops.config != CropsConfig():
        raise UserError(
            "config.data.crops applies to objectives that read several crops of an image, such as "
            f"'self_distillation'; this one reads {', '.join(fields)}"
        )
    if {"boxes", *MASKS} & {*fields}:
        boxed = parse_box_augmentation(augment, inputs, max_pixels)
        return detection_transform(source, boxed, tokenizer, templates, detection, fields)
    if detection not in (None, DetectionConfig()):
        raise UserError(
            "config.data.detection applies to objectives that read boxes, such as 'owl'; this one "
            f"reads {', '.join(fields)}"
        )
    plain = parse_augmentation(augment, inputs, max_pixels)
    others = [field for field in fields if field not in CROPS]
    whole = example_transform(others, plain, tokenizer, templates, captions_per_image, other_tokens)
    if not reads_crops:
        return whole
    assert crops is not None  # of every run
    return crops_transform(fields, augment, inputs, crops, max_pixels, whole)


def abstract_batch(
    fields: Sequence[str],
    batch_size: int,
    inputs: ImageInputs,
    context_length: int,
    detection: DetectionConfig,
    crops: Crops | None = None,
    captions_per_image: int = 1,
    other_tokens: Mapping[str, OtherTokens] | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """`ShapeDtypeStruct`s of a batch of examples, as `batch_transform` returns them.

    Args:
        fields: names of the fields.
        batch_size: number of examples.
        inputs: the model's preprocessing.
        context_length: tokens per text; 0 for models without text.
        detection: sizes of a batch of detection.
        crops: shapes of crops, for "global_crops".
        captions_per_image: number of captions, for "captions".
        other_tokens: tokens for other models.
    """
    names, boxes = detection.max_queries, detection.max_boxes
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((inputs.packed_size,), np.uint8),
        "label": ((), np.int32),
        "tokens": ((context_length,), np.int32),
        "captions": ((captions_per_image, context_length), np.int32),
        "caption": ((context_length,), np.int32),
        "boxes": ((boxes, 4), np.float32),
        "labels": ((boxes,), np.int32),
        "sizes": ((2,), np.int32),
        "positive_map": ((boxes, context_length), np.bool_),
        **(crops.shapes(inputs) if crops else {}),
        **{name: ((other.length,), np.int32) for name, other in (other_tokens or {}).items()},
    }
    if {"valid", *MASKS} & {*fields}:
        cells = detection.mask_size(*inputs.size)
        shapes |= {"masks": ((boxes, *cells), np.bool_), "query_masks": ((names, *cells), np.bool_)}
        shapes["valid"] = (cells, np.bool_)
    if {"labels", "query_masks"} & {*fields}:
        shapes["tokens"] = ((names, context_length), np.int32)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shapes[name][0]), shapes[name][1])
        for name in fields
    }
