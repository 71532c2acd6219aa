"""Masks of objects by points, boxes, masks or words.

sam = vit_jax.create_model("sam_vit_b", weights="sam_vit_b.safetensors")
found = vit_jax.segment(sam, "street.jpg", points=[[420, 310]])
found = vit_jax.segment(sam, "street.jpg", ["a cat"], detector=detector)
found = vit_jax.segment(clipseg, "street.jpg", ["a cat"])
for mask, score, name in zip(found.masks, found.scores, found.names):  # mask: bool (H, W)
    ...
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vit_jax.data.images import read_image
from vit_jax.detection.detect import detect
from vit_jax.detection.images import Images, list_images
from vit_jax.detection.selection import Detections
from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import check_positive
from vit_jax.pretrained.model import PretrainedModel
from vit_jax.segmentation.prompts import Prompts, make_prompts
from vit_jax.segmentation.results import Segmentation
from vit_jax.segmentation.runners import prompt_runner_of, word_runner_of
from vit_jax.segmentation.sam_runner import EmbeddedImage, SamRunner


def segment(
    model: PretrainedModel,
    images: Any,
    names: Sequence[str] | None = None,
    *,
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    masks: Any = None,
    query_image: Any = None,
    detector: PretrainedModel | None = None,
    threshold: float | None = None,
    templates: str | Sequence[str] = ("{}",),
    multimask: bool | None = None,
    batch_size: int = 64,
) -> Segmentation | list[Segmentation]:
    """Finds masks of objects by prompts, or by words.

    Prompts are those of one image, P of them. Points, boxes and masks that are given together
    belong together: the first point, the first box and the first mask are one prompt.

    Args:
        model: model from `create_model`.
        images: an image (path, bytes, PIL image or array, see `data.images.read_image`), or its
            features from `embed_image`; with `names` or a `query_image` also a list of images, or a
            folder.
        names: names or phrases to look for, as "a red car". SAM needs a `detector` for them;
            CLIPSeg and dual encoders do not, see `text_to_mask`.
        points: x and y of a point for each prompt (P, 2), or of N points (P, N, 2), px.
        labels: 1 for a point of the object, 0 for one of the background, (P,) or (P, N); None
            for 1.
        boxes: x0, y0, x1, y1 of a box for each prompt (P, 4), px.
        masks: a mask for each prompt: bool (P, H, W) in pixels of the image, or the logits of an
            earlier result (P, h, w).
        query_image: image that shows an object to look for, instead of `names`, for CLIPSeg or a
            detector.
        detector: model that finds boxes by `names`, which are then the prompts, see `detect`.
        threshold: score that a box exceeds, or without a detector the probability that a pixel
            exceeds; None for the default of the model.
        templates: prompt templates of names, see `detect`.
        multimask: whether a prompt has the three masks of ambiguous prompts (whole, part, subpart),
            from which `scores` choose, or the one of unambiguous prompts. None for the best of
            three for a single point, and for one mask for boxes, masks and several points.
        batch_size: prompts per batch.

    Returns:
        The masks of the image; for a list or a folder those of each image. Without a match there
        are no masks.

    Raises:
        UserError: another kind of model; no prompt; prompts outside of the image, of another shape,
            or empty; an image that cannot be read.

    Example:
        >>> import numpy as np, vit_jax
        >>> text = {"vocab_size": 49408}  # that of CLIP's tokenizer
        >>> model = vit_jax.create_model("clipseg_emoji", tokenizer="clip", text=text)
        >>> image = np.zeros((90, 120, 3), np.uint8)
        >>> found = segment(model, image, ["a cat"], threshold=0.0)
        >>> found.masks.shape
        (1, 90, 120)
    """
    check_positive(batch_size, "batch_size")
    prompted = any(each is not None for each in (points, labels, boxes, masks))
    if names is not None or query_image is not None:
        if prompted:
            raise UserError("expected names, or points, boxes and masks; found both")
        if names is not None and query_image is not None:
            raise UserError("expected names or query_image; found both")
        wanted = {"query_image": query_image, "threshold": threshold, "templates": templates}
        if detector is None:
            return word_runner_of(model).segment(model, images, names, **wanted)
        runner = prompt_runner_of(model)
        found = detect(detector, images, names, **wanted)
        listed = list_images(images)
        each = [
            _segment_boxes(model, runner, image, boxes, batch_size)
            for image, boxes in _with_images(listed, found, model.max_image_pixels)
        ]
        return each[0] if listed.single else each
    if detector is not None:
        raise UserError("a detector looks for names: expected names; found a detector alone")
    runner = prompt_runner_of(model)
    if isinstance(images, EmbeddedImage):
        image, size = images, (images.height, images.width)
    else:
        key, pixels = _read_one(model, images)
        size = (pixels.shape[0], pixels.shape[1])
    prompts = make_prompts(
        points,
        labels,
        boxes,
        masks,
        size=size,
        inputs=model.spec.inputs,
        mask_size=runner.mask_size,
    )
    if not isinstance(images, EmbeddedImage):
        image = runner.embed(model, pixels, key)
    return _segment_prompts(model, runner, image, prompts, multimask, batch_size)


def embed_image(model: PretrainedModel, image: Any) -> EmbeddedImage:
    """Computes the features of an image, which `segment` takes in its place.

    They are most of the work. Prompts of several calls can share them.

    Args:
        model: SAM.
        image: path, bytes, PIL image or array, see `data.images.read_image`.

    Raises:
        UserError: another kind of model, or an image that cannot be read.

    Example:
        >>> import numpy as np, vit_jax
        >>> sizes = {"image_size": 32, "patch_size": 8, "window_size": 2, "depth": 2}
        >>> sizes |= {"num_global": 1, "width": 16, "num_heads": 2, "mlp_dim": 16, "out_width": 16}
        >>> sam = vit_jax.create_model("sam_vit_b", image=sizes, mask_width=8, num_heads=2)
        >>> image = np.zeros((40, 60, 3), np.uint8)
        >>> features = embed_image(sam, image)
        >>> segment(sam, features, points=[[30, 20]]).masks.shape
        (1, 40, 60)
    """
    runner = prompt_runner_of(model)
    key, pixels = _read_one(model, image)
    return runner.embed(model, pixels, key)


def _read_one(model: PretrainedModel, image: Any) -> tuple[str, np.ndarray]:
    """Path and pixels of an image."""
    listed = list_images(image)
    if not listed.single:
        raise UserError(f"prompts belong to one image; found {len(listed.sources)} images")
    return listed.keys[0], read_image(listed.sources[0], max_pixels=model.max_image_pixels)


def _with_images(
    listed: Images, found: Detections | list[Detections], max_pixels: int
) -> Iterator[tuple[tuple[str, np.ndarray], Detections]]:
    """Key and pixels of each image, and its boxes. Images of a folder may be left out."""
    every = found if isinstance(found, list) else [found]
    sources = dict(zip(listed.keys, listed.sources, strict=True))
    for row, boxes in enumerate(every):
        source = sources[boxes.key] if listed.folder else listed.sources[row]
        yield (boxes.key, read_image(source, max_pixels=max_pixels)), boxes


def _segment_boxes(
    model: PretrainedModel,
    runner: SamRunner,
    image: tuple[str, np.ndarray],
    found: Detections,
    batch_size: int,
) -> Segmentation:
    """Masks of detected boxes, clipped to the image; those without an area are left out."""
    key, pixels = image
    height, width = pixels.shape[:2]
    boxes = found.boxes.clip(0, [width, height] * 2)
    kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    if not len(kept):
        return _nothing(key, height, width, runner)
    prompts = make_prompts(
        None,
        None,
        boxes[kept],
        None,
        size=(height, width),
        inputs=model.spec.inputs,
        mask_size=runner.mask_size,
    )
    embedded = runner.embed(model, pixels, key)
    masks = _segment_prompts(model, runner, embedded, prompts, False, batch_size)
    return dataclasses.replace(
        masks,
        scores=found.scores[kept],
        labels=found.labels[kept],
        names=[found.names[row] for row in kept],
    )


def _segment_prompts(
    model: PretrainedModel,
    runner: SamRunner,
    image: EmbeddedImage,
    prompts: Prompts,
    multimask: bool | None,
    batch_size: int,
) -> Segmentation:
    several = prompts.ambiguous if multimask is None else multimask
    masks, kept_logits, kept_scores, labels = [], [], [], []
    batches = runner.predict(model, image, prompts, multimask=several, batch_size=batch_size)
    prompt = 0
    for logits, scores in batches:
        for each, quality in zip(logits, scores, strict=True):
            best = [int(quality.argmax())] if multimask is None else range(len(quality))
            for index in best:
                large = model.spec.inputs.restore(each[index], image.height, image.width)
                masks.append(large > 0)
                kept_logits.append(each[index])
                kept_scores.append(quality[index])
                labels.append(prompt)
            prompt += 1
    return Segmentation(
        image.key,
        image.height,
        image.width,
        np.stack(masks),
        np.array(kept_scores, np.float32),
        np.array(labels, np.int32),
        [""] * len(labels),
        np.stack(kept_logits),
    )


def _nothing(key: str, height: int, width: int, runner: SamRunner) -> Segmentation:
    return Segmentation(
        key,
        height,
        width,
        np.zeros((0, height, width), bool),
        np.zeros(0, np.float32),
        np.zeros(0, np.int32),
        [],
        np.zeros((0, *runner.mask_size), np.float32),
    )
