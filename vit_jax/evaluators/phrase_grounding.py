"""Phrase grounding: recall of the boxes of phrases (Plummer et al. 2015, Flickr30k Entities)."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vit_jax.data.captions import Caption, end_phrase
from vit_jax.data.images import read_image
from vit_jax.errors import UserError
from vit_jax.evaluators import predictions, prompts
from vit_jax.evaluators.caption_detector import CaptionPass, ClassCaption
from vit_jax.evaluators.detector import DetectorPass, ImagePass, pad_prompts, require_detector
from vit_jax.evaluators.drawing import outline_boxes
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params
from vit_jax.models.ops.boxes import box_iou


@dataclasses.dataclass(frozen=True)
class _Phrase:
    """A phrase of an image.

    Attributes:
        image: row of the source.
        prompt: position among the prompts of its image.
        boxes: its boxes, x0, y0, x1, y1, px (n, 4).
        words: its words.
    """

    image: int
    prompt: int
    boxes: np.ndarray
    words: str


class PhraseGrounding:
    """Fraction of phrases of captions of which a box is among the first k of the detector.

    Metrics: `recall@k`. Boxes are ranked by the logit of the phrase. A box is right if its
    intersection over union with any box of the phrase is at least the threshold (the "any box"
    protocol). Phrases without a box do not count. Models that read captions, Grounding DINO and
    GLIP, read the caption of the image.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: source of captions with boxes, as grounding:flickr30k_test.jsonl?images=DIR.
            templates: prompt templates, each with one `{}`, or the name of a set of templates, see
                `prompts.templates`.
            at: values of k.
            iou_threshold: smallest intersection over union of a right box.
        """

        data: str
        templates: str | tuple[str, ...] = ("{}",)
        at: tuple[int, ...] = (1, 5, 10)
        iou_threshold: float = 0.5

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source and reads its phrases.

        Args:
            config: keys of the evaluator.
            embedder: computes embeddings of phrases, and gives model, inputs and devices.

        Raises:
            UserError: a model that does not detect, a source without phrases and boxes, or a key
                with an invalid value.
        """
        reads_captions = require_detector(embedder)
        if not config.at or min(config.at) < 1:
            raise UserError(f"at={config.at!r}: expected values of k, 1 or more")
        if not 0 < config.iou_threshold <= 1:
            raise UserError(
                f"iou_threshold={config.iou_threshold}: expected a number above 0, at most 1"
            )
        self._config, self._embedder = config, embedder
        self._templates = prompts.templates(config.templates)
        self._source = embedder.open_source(config.data)
        asked = self._read_phrases()
        self._pass: ImagePass
        if reads_captions:
            captions = [[self._caption(row)] for row in range(len(self._source))]
            self._pass = CaptionPass(embedder, self._source, self._first_boxes, captions)
        else:
            rows = pad_prompts(asked)
            self._pass = DetectorPass(
                embedder, self._source, self._first_boxes, self._queries, rows
            )

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        images = [boxes for (boxes,) in self._pass.run(params)]
        found = np.stack([images[p.image][p.prompt] for p in self._phrases])
        most = max(len(p.boxes) for p in self._phrases)
        wanted = np.stack([np.pad(p.boxes, ((0, most - len(p.boxes)), (0, 0)))
                           for p in self._phrases])  # fmt: skip
        overlap = np.asarray(jax.jit(box_iou)(found, wanted))
        self._found = found[:, 0], overlap[:, 0].max(axis=1)
        right = overlap >= self._config.iou_threshold
        for k in self._config.at:
            yield f"recall@{k}", float(np.mean(right[:, :k].any(axis=(1, 2))))

    def predicted(self, limit: int) -> predictions.Arrays:
        """Returns the first boxes of the last `run`, of phrases at even distances.

        Args:
            limit: largest number of phrases, of which at most `predictions.SHOWN` are kept.

        Returns:
            See `predictions.captioned`; the first box, then the annotated ones.
        """
        rows, (first, overlap) = [], self._found
        for i in predictions.evenly(len(self._phrases), min(limit, predictions.SHOWN)):
            phrase = self._phrases[i]
            pixels = self._source[phrase.image]["image"]
            image = read_image(pixels, max_pixels=self._embedder.max_image_pixels)
            drawn = [outline_boxes(image, boxes) for boxes in (first[i : i + 1], phrase.boxes)]
            captions = (f"{phrase.words}, IoU {overlap[i]:.2f}", "annotated")
            rows.append([*zip(map(predictions.thumbnail, drawn), captions, strict=True)])
        return predictions.captioned("grounding", rows)

    def _read_phrases(self) -> list[np.ndarray]:
        """Collects the phrases and their different words; returns the prompts of each image."""
        index: dict[str, int] = {}
        self._phrases: list[_Phrase] = []
        asked = []
        for row in range(len(self._source)):
            example = self._source.annotation(row)
            if "boxes" not in example or "spans" not in example:
                raise UserError(
                    f"{self._config.data} has no phrases with boxes: expected grounding:FILE; "
                    f"found the fields {', '.join(sorted(example))}"
                )
            # Boxes of the same words at the same place of the caption are one phrase.
            pairs = zip(example["names"], example["spans"], strict=True)
            keys = [(name, str(spans)) for name, spans in pairs]
            phrases = list(dict.fromkeys(keys))
            asked.append(np.array([index.setdefault(n, len(index)) for n, _ in phrases], np.int32))
            for prompt, key in enumerate(phrases):
                boxes = example["boxes"][[each == key for each in keys]]
                self._phrases.append(_Phrase(row, prompt, boxes, words=key[0]))
        if not self._phrases:
            raise UserError(f"{self._config.data} has no phrase with a box")
        self._names = list(index)
        return asked

    def _queries(self, params: Params) -> Float[np.ndarray, "phrases width"]:
        return self._embedder.class_embeddings(params, self._names, self._templates)

    def _caption(self, row: int) -> ClassCaption:
        """The caption of an image, and the tokens of its phrases."""
        example = self._source.annotation(row)
        pairs = zip(example["names"], example["spans"], strict=True)
        spans = {(name, str(each)): each for name, each in pairs}
        caption = Caption(end_phrase(example["captions"][0]), list(spans.values()))
        tokens = caption.tokens(self._embedder.require_text())
        return ClassCaption(np.arange(len(spans)), *tokens)

    def _first_boxes(
        self, boxes: jax.Array, logits: jax.Array, classes: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The boxes of the largest logits of each prompt, (B, P, k, 4)."""
        del classes
        by_prompt = jnp.swapaxes(logits, 1, 2)
        _, query = jax.lax.top_k(by_prompt, min(max(self._config.at), boxes.shape[1]))
        return (jnp.take_along_axis(boxes[:, None], query[..., None], axis=2),)
