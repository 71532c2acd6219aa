"""Compiled calls of a detector that reads captions, and the names or phrases of its boxes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int32

from vit_jax.data.captions import name_captions
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.detection import selection
from vit_jax.detection.finder import Finder, Found
from vit_jax.detection.runner import padded_size
from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.models.glip.model import MOST_BOXES, NMS_THRESHOLD
from vit_jax.models.ops.boxes import cxcywh_to_xyxy
from vit_jax.pretrained.model import PretrainedModel

_THRESHOLD = 0.25  # default of transformers
# Of boxes of several captions, each of which finds the same objects under its own names.
_NMS_OF_CAPTIONS = 0.7
_FEWEST_TOKENS = 16  # shortest caption that is compiled
# Spaces that transformers removes from the text of tokens.
_SPACES = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")

# probabilities (B, Q, T) -> scores (B, Q), labels (B, Q)
Reader = Callable[[Float32[np.ndarray, "b q t"]], tuple[np.ndarray, np.ndarray]]


class CaptionRunner:
    """A detector's compiled function."""

    def __init__(self, model: PretrainedModel) -> None:
        """Declares the function, which is compiled at first use.

        Args:
            model: detector that reads a caption per image.
        """
        definition, inputs = model.definition, model.spec.inputs

        @jax.jit
        def detect(
            params: Params, packed: jax.Array, sizes: jax.Array, tokens: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            images = inputs.normalize(packed)
            captions = jax.numpy.broadcast_to(tokens, (len(images), len(tokens)))
            found = definition.bind(params)(images, captions, sizes=sizes)
            probabilities = jax.nn.sigmoid(found["logits"])
            if "centerness" in found:
                probabilities *= jax.nn.sigmoid(found["centerness"])[..., None]
            return cxcywh_to_xyxy(found["boxes"]), probabilities

        self._detect = detect

    def find_names(
        self,
        model: PretrainedModel,
        names: Sequence[str],
        templates: Sequence[str],
        text_threshold: float | None,
    ) -> Finder:
        """Returns the search for names, or for phrases of them.

        Names that exceed the context of the model are divided into several captions, whose boxes
        are joined. Boxes then compete whatever their names are, because a box of one caption counts
        for one name.

        Args:
            model: detector.
            names: names of classes, all different.
            templates: one prompt template with one `{}`.
            text_threshold: probability above which a token belongs to the phrase of a box; None for
                the names as they are.

        Raises:
            UserError: several templates, a name that is longer than the model's context, or one
                without tokens.
        """
        if len(templates) > 1:
            raise UserError(
                f"{model.kind} models read names as one caption: expected one template; found "
                f"{len(templates)}"
            )
        tokenizer, (template,) = model.tokenize, templates
        parts = name_captions(names, tokenizer, template)
        classes = list(names) if text_threshold is None else []
        searches: list[tuple[np.ndarray, Reader]] = []
        for part, tokens, of_name in parts:
            length = _shortened(tokens)
            tokens, of_name = tokens[:length], of_name[:, :length]
            reader: Reader = _Names(of_name, part.start)
            if text_threshold is not None:
                reader = _Phrases(tokens, text_threshold, classes, tokenizer)
            searches.append((tokens, reader))

        def find(packed: np.ndarray, sizes: np.ndarray) -> Found:
            scaled_size = model.spec.inputs.scaled_size
            scaled = np.array([scaled_size(*size) for size in sizes.clip(1).tolist()])
            found = []
            for tokens, read in searches:
                boxes, probabilities = self._detect(model.params, packed, scaled, tokens)
                found.append((np.asarray(boxes), *read(np.asarray(probabilities))))
            joined = Found(*(np.concatenate(each, axis=1) for each in zip(*found, strict=True)))
            return _dense(joined) if model.predicts_centerness else joined

        suppressed = NMS_THRESHOLD if model.predicts_centerness else 1.0
        if len(parts) == 1:
            return Finder(find, classes, _THRESHOLD, suppressed, selection.select)
        select = functools.partial(selection.select, by_label=False)
        return Finder(find, classes, _THRESHOLD, min(suppressed, _NMS_OF_CAPTIONS), select)

    def find_like(self, model: PretrainedModel, query_image: Any) -> Finder:
        """Refuses a query image.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{model.kind} models look for words: expected names; found a query_image, which "
            "OWL-ViT and OWLv2 take"
        )


def _dense(found: Found) -> Found:
    """The boxes of the highest scores; the score is the square root of probability and centerness.

    Products of probabilities are low for boxes of any quality. The root is that of GLIP's authors.
    """
    kept = np.argsort(-found.scores, axis=1, kind="stable")[:, :MOST_BOXES]
    return Found(
        np.take_along_axis(found.boxes, kept[..., None], axis=1),
        np.sqrt(np.take_along_axis(found.scores, kept, axis=1)),
        np.take_along_axis(found.labels, kept, axis=1),
    )


def _shortened(tokens: Int32[np.ndarray, " length"]) -> int:
    """Number of tokens of a caption without most of its padding."""
    used = int(np.flatnonzero(tokens)[-1]) + 1
    return min(padded_size(used, _FEWEST_TOKENS), len(tokens))


class _Names:
    """Scores of names: mean probability of their tokens (GLIP, Li et al. 2022; Grounding DINO)."""

    def __init__(self, of_name: Bool[np.ndarray, "names length"], first: int) -> None:
        """Stores which tokens (N, T) are those of each name; `first` is the label of the first."""
        self._mean = np.float32(of_name / of_name.sum(axis=1, keepdims=True)).T
        self._first = first

    def __call__(
        self, probabilities: Float32[np.ndarray, "b q t"]
    ) -> tuple[Float32[np.ndarray, "b q"], Int32[np.ndarray, "b q"]]:
        """Scores and labels of the most probable names."""
        scores = probabilities @ self._mean
        return scores.max(axis=-1), (scores.argmax(axis=-1) + self._first).astype(np.int32)


class _Phrases:
    """Phrases: text of the tokens above a threshold, as in transformers.

    The first token is not part of a phrase, nor is the last one of a caption that fills the whole
    context (`post_process_grounded_object_detection`). The score is that of the best token.
    """

    def __init__(
        self,
        tokens: Int32[np.ndarray, " length"],
        threshold: float,
        phrases: list[str],
        tokenizer: Tokenizer,
    ) -> None:
        """Stores the tokens of a caption (T,) and the list to which phrases are appended."""
        self._tokens, self._threshold = tokens, threshold
        self._phrases, self._tokenizer = phrases, tokenizer
        inner = np.arange(len(tokens))
        self._inner = (inner > 0) & (inner < tokenizer.context_length - 1)
        self._known: dict[bytes, int] = {}

    def __call__(
        self, probabilities: Float32[np.ndarray, "b q t"]
    ) -> tuple[Float32[np.ndarray, "b q"], Int32[np.ndarray, "b q"]]:
        """Scores of the best tokens, and labels of the phrases."""
        above = (probabilities > self._threshold) & self._inner
        labels = [self._label(row) for row in above.reshape(-1, above.shape[-1])]
        return probabilities.max(axis=-1), np.array(labels, np.int32).reshape(above.shape[:2])

    def _label(self, above: Bool[np.ndarray, " length"]) -> int:
        key = above.tobytes()
        if key not in self._known:
            phrase = self._tokenizer.decode(self._tokens[above].tolist())
            for space in _SPACES:
                phrase = phrase.replace(space, space.strip())
            if phrase not in self._phrases:
                self._phrases.append(phrase)
            self._known[key] = self._phrases.index(phrase)
        return self._known[key]
