"""Average precision of a detector that is asked for classes by words."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from vit_jax.data.captions import name_captions
from vit_jax.data.images import read_image
from vit_jax.errors import UserError, check_name, unknown
from vit_jax.evaluators import average_precision as ap
from vit_jax.evaluators import predictions, prompts
from vit_jax.evaluators.caption_detector import CaptionPass, ClassCaption
from vit_jax.evaluators.detector import DetectorPass, ImagePass, pad_prompts, require_detector
from vit_jax.evaluators.drawing import draw_boxes, draw_part, save_drawing
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.outcomes import FALSE, MISSED, outcomes
from vit_jax.models.definition import Params
from vit_jax.models.glip.model import MOST_BOXES, NMS_THRESHOLD
from vit_jax.models.ops.nms import nms
from vit_jax.paths import as_path

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
    not used. Embeddings of a class are averaged over prompt templates. Models that read captions,
    Grounding DINO and GLIP, are asked for as many names at once as their context holds, in one
    template; see `caption_detector`.
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
            draw: folder to which the first images are written with their detections, also gs:// or
                s3://; "": none.
            draw_images: number of images that are drawn.
            draw_threshold: score that a detection has to reach to be drawn.
        """

        data: str
        templates: str | tuple[str, ...] = ("{}",)
        class_names: str | tuple[str, ...] = ""
        style: str = "coco"
        negatives: int = -1
        max_detections: int = 0
        held_out: str | tuple[str, ...] = ()
        seed: int = 0
        draw: str = ""
        draw_images: int = 32
        draw_threshold: float = 0.1

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
        captions = require_detector(embedder)
        check_name(config.style, STYLES, "style")
        for key, lowest in (("negatives", -1), ("max_detections", 0), ("draw_images", 0)):
            if getattr(config, key) < lowest:
                raise UserError(
                    f"{key}={getattr(config, key)}: expected a number of at least {lowest}"
                )
        if config.draw:  # a URL that cannot be written is refused now
            as_path(config.draw)
        self._config, self._embedder = config, embedder
        self._templates = prompts.templates(config.templates)
        self._source = embedder.open_source(config.data)
        if not self._source.class_names:
            raise UserError(f"{config.data} has no classes: expected boxes with names, as in coco:")
        self._names: list[str] = self._source.class_names
        self._prompt_names = prompts.class_names(config.class_names, self._names)
        self._read_annotations()
        self._groups = self._class_groups()
        asked = None if config.negatives == -1 else self._sample_prompts()
        module = embedder.model.bind(embedder.model.shapes())
        self._suppresses = hasattr(module, "predicts_centerness")
        self._pass: ImagePass
        if captions:
            asked_in = self._captions(asked)
            self._pass = CaptionPass(embedder, self._source, self._best_pairs, asked_in)
        else:
            rows = None if asked is None else pad_prompts(asked)
            self._pass = DetectorPass(embedder, self._source, self._best_pairs, self._queries, rows)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        config, detected = self._config, self._detections(params)
        if config.draw and jax.process_index() == 0:
            self._draw(detected[: config.draw_images])
        curves = ap.compute_curves(
            self._annotated,
            detected,
            len(self._names),
            counts=sorted({self._most, *(k for k in STYLES[config.style] if k < self._most)}),
            federated=config.style == "lvis",
        )
        self._found = detected, curves
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

    def predicted(self, limit: int) -> predictions.Arrays:
        """Returns what the last `run` predicted, matched at an IoU of 0.5, see `outcomes`.

        Args:
            limit: largest number of detections, those of the highest scores.

        Returns:
            `recall` (101,), and the `precision`, `precision_50` and `precision_75` at it (101,),
            means over classes; `outcome` (N,), "matched", "false" or "missed" of each detection and
            missed object, with `row` int32 (N,), its image, `class_index` int32 (N,), `score` and
            `iou` float32 (N,), and `box` float32 (N, 4), x0, y0, x1, y1 in pixels of the image;
            `class`, the names; `shown`, positions of the false boxes of the highest score and of
            missed ones, and `shown_image`, thumbnails of their surroundings.
        """
        detected, curves = self._found
        boxes = outcomes(self._annotated, detected, len(self._names), limit)
        false, missed = (np.flatnonzero(boxes["outcome"] == each) for each in (FALSE, MISSED))
        missed = missed[predictions.evenly(len(missed), predictions.SHOWN)]
        chosen = np.concatenate([false[: predictions.SHOWN], missed])
        return {
            "kind": np.array("detection"),
            "class": np.array(self._prompt_names, np.str_),
            **ap.precision_by_recall(curves),
            **boxes,
            "shown": chosen.astype(np.int32),
            "shown_image": np.array(
                [
                    predictions.thumbnail(
                        draw_part(self._image(int(boxes["row"][i])), boxes["box"][i])
                    )
                    for i in chosen
                ],
                np.bytes_,
            ),
        }

    def _image(self, row: int) -> UInt8[np.ndarray, "height width channels"]:
        limit = self._embedder.max_image_pixels
        return read_image(self._source[row]["image"], max_pixels=limit)

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

    def _sample_prompts(self) -> list[np.ndarray]:
        """Classes that each image is asked for: its own, then others."""
        asked = []
        for row, image in enumerate(self._annotated):
            present = np.unique(image.classes)
            absent = np.setdiff1d(np.arange(len(self._names)), present)
            rng = np.random.default_rng((self._config.seed, row))
            count = min(self._config.negatives, len(absent))
            asked.append(np.concatenate([present, rng.choice(absent, count, replace=False)]))
        return asked

    def _captions(self, asked: list[np.ndarray] | None) -> list[list[ClassCaption]]:
        """The captions of each image; None for all classes."""
        if len(self._templates) > 1:
            raise UserError(
                f"{type(self._embedder.model.architecture).__name__} reads names as captions: "
                f"expected one template; found {len(self._templates)}"
            )
        tokenizer = self._embedder.require_text()

        def of(classes: np.ndarray) -> list[ClassCaption]:
            names = [self._prompt_names[i] for i in classes]
            found = name_captions(names, tokenizer, *self._templates)
            return [ClassCaption(classes[part], *words) for part, *words in found]

        if asked is None:
            return [of(np.arange(len(self._names)))] * len(self._source)
        return [of(classes) for classes in asked]

    def _queries(self, params: Params) -> Float[np.ndarray, "classes width"]:
        return self._embedder.class_embeddings(params, self._prompt_names, self._templates)

    def _detections(self, params: Params) -> list[ap.Detected]:
        detected = []
        for boxes, classes, scores, exists in self._pass.run(params):
            kept = np.flatnonzero(exists)
            kept = kept[np.argsort(-scores[kept], kind="stable")][: self._most]
            detected.append(ap.Detected(boxes[kept], classes[kept], scores[kept]))
        return detected

    def _draw(self, detected: list[ap.Detected]) -> None:
        for row, found in enumerate(detected):
            image = self._image(row)
            shown = found.scores >= self._config.draw_threshold
            names = [self._prompt_names[i] for i in found.classes[shown]]
            drawing = draw_boxes(image, found.boxes[shown], names, found.scores[shown])
            save_drawing(self._config.draw, f"{row:06d}", drawing)

    def _best_pairs(
        self, boxes: jax.Array, logits: jax.Array, classes: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The pairs of a box and a class of the largest logits of each image.

        Of a model with a box at each position, those that a better one of the class overlaps do not
        count.

        Returns:
            Boxes (B, k, 4), classes (B, k), scores (B, k), and whether each pair exists (B, k).
        """
        flat = logits.reshape(len(logits), -1)
        most = MOST_BOXES if self._suppresses else self._most
        best, place = jax.lax.top_k(flat, min(most, flat.shape[1]))
        query, prompt = jnp.divmod(place, logits.shape[2])
        boxes = jnp.take_along_axis(boxes, query[..., None], axis=1)
        classes = jnp.take_along_axis(classes, prompt, axis=1)
        exists = best > -jnp.inf
        if self._suppresses:
            exists &= nms(boxes, best, NMS_THRESHOLD, labels=classes)
        return boxes, classes, jax.nn.sigmoid(best), exists
