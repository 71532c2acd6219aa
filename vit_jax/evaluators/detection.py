"""Average precision of a detector that is asked for classes by words."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.images import read_image
from vit_jax.errors import UserError, check_name, unknown
from vit_jax.evaluators import average_precision as ap
from vit_jax.evaluators import prompts
from vit_jax.evaluators.batching import local_part, padded_batches, progress_bar
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params
from vit_jax.models.ops.boxes import cxcywh_to_xyxy
from vit_jax.parallel.mesh import batch_sharding, batch_shards, to_devices

# Style -> numbers of detections per image and class.
STYLES = {"coco": (1, 10, 100), "lvis": (300,)}
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
RARE = "lvis_rare"
HELD_OUT = {
    # The 17 novel classes beside 48 base classes (Bansal et al. 2018, section 5.1).
    "coco_17": (
        "airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard",
        "skateboard", "cup", "knife", "cake", "couch", "keyboard", "sink", "scissors",
    ),
}  # fmt: skip


class Detection:
    """COCO's or LVIS's average precision, through faster-coco-eval.

    Metrics, fractions in [0, 1], or -1 where there is no object to find: `AP` (mean over the IoU
    thresholds 0.5, 0.55, ..., 0.95), `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large`; recalls
    `AR@k` for k detections per image and class, `AR_small`, `AR_medium`, `AR_large`. With
    `held_out`, also `AP_held_out` and `AP50_held_out` of these classes, and `AP_seen` and
    `AP50_seen` of all others; with LVIS's frequencies, `AP_rare`, `AP_common`, `AP_frequent`.

    A detection is a pair of a box and a class, scored by the sigmoid of its logit; objectness is
    not used. Embeddings of a class are averaged over prompt templates.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: source with boxes, as coco:instances_val2017.json?images=val2017.
            templates: prompt templates, each with one `{}`, or the name of a set of templates, see
                `prompts.templates`.
            class_names: names of the classes in prompts, see `prompts.class_names`.
            style: "coco", or "lvis" for images that are annotated for some classes only.
            negatives: number of absent classes, drawn at random for each image, that are asked for
                beside those in the image; -1: all classes of the source.
            max_detections: detections per image that are kept; 0: 100 for "coco", 300 for "lvis".
            held_out: classes that are reported apart: names, or a named split, "coco_17" or
                "lvis_rare".
            seed: PRNG seed of the absent classes.
        """

        data: str
        templates: str | tuple[str, ...] = ("{}",)
        class_names: str | tuple[str, ...] = ""
        style: str = "coco"
        negatives: int = -1
        max_detections: int = 0
        held_out: str | tuple[str, ...] = ()
        seed: int = 0

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source and reads its annotations.

        Args:
            config: keys of the evaluator.
            embedder: computes embeddings of classes, and gives model, inputs and devices.

        Raises:
            UserError: a model that does not detect or whose inputs show a part of the image, a
                source without boxes or classes, or a key with an invalid value.
            MissingPackageError: faster-coco-eval is not installed.
        """
        ap.require_package()
        embedder.require_text()
        if not hasattr(embedder.model.bind(embedder.model.shapes()), "detect"):
            raise UserError(
                "average precision needs a detector, as owlvit_base_patch32; found "
                f"{type(embedder.model.architecture).__name__}"
            )
        check_name(config.style, STYLES, "style")
        for key, lowest in (("negatives", -1), ("max_detections", 0)):
            if getattr(config, key) < lowest:
                raise UserError(
                    f"{key}={getattr(config, key)}: expected a number of at least {lowest}"
                )
        embedder.inputs.extent(*embedder.inputs.size)
        self._config, self._embedder = config, embedder
        self._templates = prompts.templates(config.templates)
        self._source = embedder.open_source(config.data)
        if not self._source.class_names:
            raise UserError(f"{config.data} has no classes: expected boxes with names, as in coco:")
        self._names: list[str] = self._source.class_names
        self._prompt_names = prompts.class_names(config.class_names, self._names)
        self._read_annotations()
        self._groups = self._class_groups()
        self._prompts = None if config.negatives == -1 else self._sample_prompts()

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        config = self._config
        curves = ap.compute_curves(
            self._annotated,
            self._detections(params),
            len(self._names),
            counts=sorted({self._most, *(k for k in STYLES[config.style] if k < self._most)}),
            federated=config.style == "lvis",
        )
        yield "AP", ap.average_precision(curves)
        yield "AP50", ap.average_precision(curves, iou=0.5)
        yield "AP75", ap.average_precision(curves, iou=0.75)
        for area in ap.AREAS[1:]:
            yield f"AP_{area}", ap.average_precision(curves, area=area)
        for count in curves.counts:
            yield f"AR@{count}", ap.average_recall(curves, count=count)
        for area in ap.AREAS[1:]:
            yield f"AR_{area}", ap.average_recall(curves, area=area)
        for name, classes in self._groups.items():
            yield f"AP_{name}", ap.average_precision(curves, classes)
            yield f"AP50_{name}", ap.average_precision(curves, classes, iou=0.5)

    @property
    def _most(self) -> int:
        """Detections per image that are kept."""
        return self._config.max_detections or STYLES[self._config.style][-1]

    def _read_annotations(self) -> None:
        index = {name: i for i, name in enumerate(self._names)}
        self._annotated: list[ap.Annotated] = []
        self._frequencies: list[str] | None = None
        for row in range(len(self._source)):
            example = self._source.annotation(row)
            if "boxes" not in example or "names" not in example:
                raise UserError(
                    f"{self._config.data} has no boxes: expected a source of boxes, as coco:FILE; "
                    f"found the fields {', '.join(sorted(example))}"
                )
            self._frequencies = example.get("frequencies")
            boxes, absent = example["boxes"], example.get("negatives")
            sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
            self._annotated.append(
                ap.Annotated(
                    boxes=boxes,
                    classes=np.array([index[name] for name in example["names"]], np.int64),
                    crowd=example["crowd"],
                    areas=example.get("areas", sides.prod(axis=1)),
                    absent=None if absent is None else tuple(index[name] for name in absent),
                    not_exhaustive=tuple(index[name] for name in example.get("not_exhaustive", ())),
                )
            )
        if self._config.style == "lvis" and all(each.absent is None for each in self._annotated):
            raise UserError(
                f"style='lvis', but no image of {self._config.data} has neg_category_ids: expected "
                "annotations as LVIS's, or style='coco'"
            )

    def _class_groups(self) -> dict[str, list[int]]:
        """Classes by the name of their group: held out and seen, and LVIS's frequencies."""
        groups, config = {}, self._config
        by_frequency = {
            name: [i for i, key in enumerate(self._frequencies or ()) if key == letter]
            for letter, name in FREQUENCIES.items()
        }
        if config.held_out:
            held_out = self._held_out(by_frequency["rare"])
            groups["held_out"] = sorted(held_out)
            groups["seen"] = [i for i in range(len(self._names)) if i not in held_out]
        if config.style == "lvis" and self._frequencies:
            groups |= by_frequency
        return groups

    def _held_out(self, rare: Sequence[int]) -> set[int]:
        held_out = self._config.held_out
        if isinstance(held_out, str):
            check_name(held_out, [*HELD_OUT, RARE], "split of held-out classes")
            if held_out == RARE and not rare:
                raise UserError(f"held_out={RARE!r}: {self._config.data} has no rare classes")
            if held_out == RARE:
                return set(rare)
            held_out = HELD_OUT[held_out]
        for name in held_out:
            if name not in self._names:
                raise unknown(name, self._names, f"class of {self._config.data}, in held_out,")
        return {self._names.index(name) for name in held_out}

    def _sample_prompts(self) -> np.ndarray:
        """Classes that each image is asked for, int32 (images, prompts), -1 for padding."""
        rows = []
        for row, image in enumerate(self._annotated):
            present = np.unique(image.classes)
            absent = np.setdiff1d(np.arange(len(self._names)), present)
            rng = np.random.default_rng((self._config.seed, row))
            count = min(self._config.negatives, len(absent))
            rows.append(np.concatenate([present, rng.choice(absent, count, replace=False)]))
        width = max(1, *map(len, rows))
        return np.stack([np.pad(r, (0, width - len(r)), constant_values=-1) for r in rows]).astype(
            np.int32
        )

    def _detections(self, params: Params) -> list[ap.Detected]:
        """Detections in all images, the same on every process."""
        embedder, size = self._embedder, self._embedder.batch_size
        queries = embedder.class_embeddings(params, self._prompt_names, self._templates)
        detect = embedder.compile(self._detect)
        batches = padded_batches(
            self._read,
            start=0,
            stop=len(self._source),
            batch_size=size,
            part=local_part(size, batch_shards(embedder.mesh)),
        )
        found: list[ap.Detected] = []
        with progress_bar("detections", total=len(self._source)) as bar:
            for batch in batches:
                on_devices = to_devices(batch, batch_sharding(embedder.mesh))
                arrays = jax.device_get(detect(params, on_devices, queries))
                valid = min(size, len(self._source) - len(found))
                for boxes, scores, classes in zip(*(x[:valid] for x in arrays), strict=True):
                    kept = scores >= 0
                    found.append(ap.Detected(boxes[kept], classes[kept], scores[kept]))
                    _check_finite(boxes, scores, len(found) - 1)
                bar.update(valid)
        return found

    def _read(self, row: int) -> dict[str, np.ndarray]:
        embedder = self._embedder
        image = read_image(self._source[row]["image"], max_pixels=embedder.max_image_pixels)
        extent = embedder.inputs.extent(*image.shape[:2])
        batch = {
            "image": embedder.inputs.pack(embedder.inputs(image)),
            "extent": np.asarray(extent[::-1] * 2, np.float32),
        }
        if self._prompts is not None:
            batch["prompts"] = self._prompts[row]
        return batch

    def _detect(
        self, model: Any, batch: dict[str, jax.Array], queries: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The best pairs of a box and a class of each image.

        Args:
            model: detector.
            batch: `image`, packed; `extent` (B, 4), width and height, twice, of the area that the
                input shows, px; optionally `prompts` (B, P).
            queries: embeddings of all classes (C, D).

        Returns:
            Boxes (B, k, 4) in pixels of the image; scores (B, k), negative for padding, NaN where
            the model's output is; classes (B, k).
        """
        images = self._embedder.inputs.normalize(batch["image"])
        classes = batch.get("prompts", jnp.arange(len(queries))[None])
        outputs = model.detect(images, queries[jnp.maximum(classes, 0)], classes >= 0)
        logits = jnp.where(classes[:, None] >= 0, outputs["logits"], -jnp.inf)
        best, place = jax.lax.top_k(
            logits.reshape(len(images), -1), min(self._most, logits[0].size)
        )
        query, prompt = jnp.divmod(place, logits.shape[-1])
        found = jnp.take_along_axis(outputs["boxes"], query[..., None], axis=1)
        classes = jnp.broadcast_to(classes, (len(images), classes.shape[1]))
        scores = jnp.where(best == -jnp.inf, -1.0, jax.nn.sigmoid(best))
        return (
            cxcywh_to_xyxy(found) * batch["extent"][:, None],
            scores,
            jnp.take_along_axis(classes, prompt, axis=1),
        )


def _check_finite(boxes: np.ndarray, scores: np.ndarray, row: int) -> None:
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise UserError(
            f"detections in image {row} are NaN or infinite: the weights are damaged, or they "
            "overflow in compute.dtype"
        )
