"""Masks by words: referring expressions and classes (Luddecke and Ecker 2022, CLIPSeg)."""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from vit_jax.data.boxed_examples import Part, check_source, words_of
from vit_jax.data.images import read_image
from vit_jax.data.masks import decode_mask
from vit_jax.errors import UserError
from vit_jax.evaluators import mask_metrics, predictions, prompts
from vit_jax.evaluators.batching import device_batches, not_finite
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.prompted import image_size
from vit_jax.evaluators.regions import in_parts
from vit_jax.models.definition import Params


class TextSegmentation:
    """Overlap of the masks of words with those of all objects of that name in the image.

    Each image is asked for the names that it shows, or for its referring expressions. Names of
    which an object has no mask, and those without a pixel, are not asked.

    Metrics, fractions in [0, 1]: `mIoU`, the mean over pairs of an image and a name; `oIoU`, the
    sum of all intersections divided by that of all unions; `P@50`, the fraction of pairs with an
    IoU of at least 0.5; `boundary_f`, see `mask_metrics.boundary_f`; and for sources with classes
    `class_mIoU`, the mean over classes of the oIoU of their pairs.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: source with masks, as referring:refcoco_val.jsonl?images=train2014.
            template: prompt template with one `{}`.
            class_names: names of the classes in prompts, see `prompts.class_names`.
            threshold: probability from which a pixel belongs to a mask.
            max_prompts: prompts of an image at once. `eval_batch_size` is the number of prompts of
                a batch.
        """

        data: str
        template: str = "{}"
        class_names: str | tuple[str, ...] = ""
        threshold: float = 0.5
        max_prompts: int = 8

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source and reads its names.

        Args:
            config: keys of the evaluator.
            embedder: gives the model, its inputs, its tokenizer and the devices.

        Raises:
            UserError: a model without masks of words, a source without masks, or a key with an
                invalid value.
        """
        if not hasattr(embedder.model.bind(embedder.model.shapes()), "masks_of"):
            raise UserError(
                "masks by words need a model that predicts them, as clipseg_rd64_refined; found "
                f"{type(embedder.model.architecture).__name__}"
            )
        embedder.require_text()
        embedder.inputs.extent(*embedder.inputs.size)
        if not 0 < config.threshold < 1:
            raise UserError(f"threshold={config.threshold}: expected a number between 0 and 1")
        if config.max_prompts < 1:
            raise UserError(f"max_prompts={config.max_prompts}: expected 1 or more")
        (template,) = prompts.templates((config.template,))
        self._config, self._embedder = config, embedder
        self._source = embedder.open_source(config.data)
        check_source(self._source, masks=True)
        own = self._source.class_names or []
        self._shown = dict(zip(own, prompts.class_names(config.class_names, own), strict=True))
        self._names = [self._asked(row) for row in range(len(self._source))]
        counts = [len(names) for names in self._names]
        if not any(counts):
            raise UserError(f"{config.data} has no object with a mask")
        self._count = min(config.max_prompts, max(counts))
        self._parts = in_parts(counts, self._count)
        texts = dict.fromkeys(name for names in self._names for name in names)
        words = [template.format(words_of(self._shown.get(name, name))) for name in texts]
        self._tokens = dict(zip(texts, embedder.tokenize(words), strict=True))

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters.

        Raises:
            UserError: a logit is not finite.
        """
        embedder, edges = self._embedder, []
        pairs: list[tuple[int, int]] = []
        chosen = predictions.evenly(sum(map(len, self._names)), predictions.SHOWN)
        self._found: list[tuple[int, str, np.ndarray, np.ndarray]] = []
        by_class: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        limit = np.log(self._config.threshold) - np.log1p(-self._config.threshold)
        predict = embedder.compile(self._predict)
        batches = device_batches(
            self._read,
            mesh=embedder.mesh,
            stop=len(self._parts),
            batch_size=max(1, embedder.batch_size // self._count),
            description="masks of words",
        )
        for batch, rows in batches:
            logits = np.asarray(predict(params, batch))
            for (row, start, end), own in zip([self._parts[i] for i in rows], logits, strict=False):
                if not np.isfinite(own[: end - start]).all():
                    raise not_finite(f"masks of image {row}")
                targets, valid = self._targets(row)
                for name, x in zip(self._names[row][start:end], own, strict=False):
                    found = embedder.inputs.restore(x, *valid.shape) > limit
                    found &= valid
                    if len(pairs) in chosen:
                        self._found.append((row, name, found, targets[name]))
                    pair = mask_metrics.overlap(found, targets[name])
                    pairs.append(pair)
                    by_class[name].append(pair)
                    edges.append(mask_metrics.boundary_f(found, targets[name]))
        yield "mIoU", mask_metrics.mean_iou(pairs)
        yield "oIoU", mask_metrics.overall_iou(pairs)
        yield "P@50", float(np.mean([2 * both >= either for both, either in pairs]))
        yield "boundary_f", float(np.mean(edges))
        if self._shown:
            each = [mask_metrics.overall_iou(found) for found in by_class.values()]
            yield "class_mIoU", float(np.mean(each))

    def predicted(self, limit: int) -> predictions.Arrays:
        """Returns masks of the last `run`, of pairs at even distances, see `predictions.masks`.

        Args:
            limit: largest number of pairs, of which at most `predictions.SHOWN` are kept.
        """
        rows = []
        for row, name, found, target in self._found[:limit]:
            limit_pixels = self._embedder.max_image_pixels
            image = read_image(self._source[row]["image"], max_pixels=limit_pixels)
            iou = mask_metrics.mean_iou([mask_metrics.overlap(found, target)])
            rows.append(predictions.masks(image, [found], [target], f"{name}, IoU {iou:.2f}"))
        return predictions.captioned("segmentation", rows)

    def _asked(self, row: int) -> list[str]:
        """Names of an image whose objects all have a mask."""
        part = Part.of({"image": None, **self._source.annotation(row)}, with_crowds=True)
        absent = {n for n, mask in zip(part.names, part.masks or (), strict=True) if mask is None}
        return [name for name in dict.fromkeys(part.names) if name not in absent]

    def _targets(self, row: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Mask of each name of an image, and the pixels that are annotated."""
        part = Part.of(self._source[row], with_crowds=True)
        size = image_size(part.image)
        valid = np.ones(size, np.bool_) if part.ignored is None else ~part.ignored
        targets = {name: np.zeros(size, np.bool_) for name in self._names[row]}
        for name, stored in zip(part.names, part.masks or (), strict=True):
            if name in targets and (mask := decode_mask(stored, *size)) is not None:
                targets[name] |= mask & valid
        return targets, valid

    def _read(self, index: int) -> dict[str, np.ndarray]:
        embedder, (row, start, end) = self._embedder, self._parts[index]
        image = read_image(self._source[row]["image"], max_pixels=embedder.max_image_pixels)
        tokens = np.stack([self._tokens[name] for name in self._names[row][start:end]])
        padding = ((0, self._count - len(tokens)), (0, 0))
        return {
            "image": embedder.inputs.pack(embedder.inputs(image)),
            "tokens": np.pad(tokens, padding),
        }

    def _predict(self, model: Any, batch: dict[str, jax.Array]) -> jax.Array:
        images = self._embedder.inputs.normalize(batch["image"])
        return model(images, batch["tokens"])["masks"]
