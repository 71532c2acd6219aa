"""Captions for models that align boxes with words: names that are joined, and tokens of phrases.

A caption of GLIP and of Grounding DINO is a list of phrases that end in ".", as "a cat. a dog.".
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError

Span = tuple[int, int]
"""First character and the one after the last."""

SEPARATORS = ".?"
"""Characters that end a phrase."""

_SPACES = str.maketrans(dict.fromkeys(SEPARATORS, " "))


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption and where its phrases are.

    Attributes:
        text: the caption.
        spans: characters of each phrase, in one or several pieces.
    """

    text: str
    spans: Sequence[Sequence[Span]]

    def tokens(
        self, tokenizer: Tokenizer
    ) -> tuple[Int32[np.ndarray, " length"], Bool[np.ndarray, "phrases length"]]:
        """Tokenizes the caption and finds the tokens of its phrases.

        Args:
            tokenizer: tokenizer that reports characters.

        Returns:
            Ids (T,), and whether each token is one of each phrase (P, T): none beyond the context.
        """
        tokens, characters = tokenizer.with_spans(self.text)
        first, last = characters.T
        of_phrase = np.zeros((len(self.spans), len(first)), np.bool_)
        for row, spans in zip(of_phrase, self.spans, strict=True):
            for start, end in spans:
                row |= (first < end) & (last > start)
        return tokens, of_phrase


def end_phrase(text: str) -> str:
    """Returns a caption whose last phrase ends in "." or "?"."""
    text = text.rstrip()
    return text if text.endswith(tuple(SEPARATORS)) else f"{text}."


def join_names(names: Sequence[str], template: str = "{}") -> Caption:
    """Joins names to a caption, as "a cat. a dog.".

    Args:
        names: names. "." and "?" count as spaces, because they end a phrase.
        template: prompt template with one `{}`, whose other words are no part of a name.

    Returns:
        The caption, with one phrase per name.
    """
    before, after = template.translate(_SPACES).split("{}")
    text, spans = "", []
    for name in names:
        start = len(text) + len(before)
        spans.append([(start, start + len(name))])
        text += f"{before}{name.translate(_SPACES)}{after}. "
    return Caption(text.rstrip(), spans)


def split_names(
    names: Sequence[str], tokenizer: Tokenizer, template: str = "{}"
) -> tuple[list[range], list[int]]:
    """Divides names into as few captions in their order as the context allows.

    Args:
        names: names.
        tokenizer: tokenizer.
        template: prompt template with one `{}`.

    Returns:
        Positions of the names of each caption, and the number of tokens of a caption of each name.
        One that is longer than the context has a caption of its own.
    """
    alone = tokenizer.lengths([join_names([name], template).text for name in names])
    (marks,) = tokenizer.lengths([""])
    parts, start, used = [], 0, marks
    for i, length in enumerate(alone):
        if i > start and used + length - marks > tokenizer.context_length:
            parts.append(range(start, i))
            start, used = i, marks
        used += length - marks
    return [*parts, range(start, len(names))], alone


def name_captions(
    names: Sequence[str], tokenizer: Tokenizer, template: str = "{}"
) -> list[tuple[range, Int32[np.ndarray, " length"], Bool[np.ndarray, "names length"]]]:
    """Tokenizes names as captions, see `split_names`.

    Args:
        names: names.
        tokenizer: tokenizer that reports characters.
        template: prompt template with one `{}`.

    Returns:
        For each caption the positions of its names, its ids (T,), and whether each token is one of
        each name (P, T).

    Raises:
        UserError: a name that is longer than the context, or one without tokens.
    """
    parts, lengths = split_names(names, tokenizer, template)
    for name, length in zip(names, lengths, strict=True):
        if length > tokenizer.context_length:
            raise UserError(
                f"the name {name!r} has {length} tokens in a caption: expected at most "
                f"{tokenizer.context_length}, the context of the model"
            )
    found = []
    for part in parts:
        chosen = [names[i] for i in part]
        tokens, of_name = join_names(chosen, template).tokens(tokenizer)
        for name, row in zip(chosen, of_name, strict=True):
            if not row.any():
                raise UserError(
                    f"the name {name!r} has no tokens: expected letters or digits besides "
                    f"{' and '.join(SEPARATORS)}, which end a phrase"
                )
        found.append((part, tokens, of_name))
    return found
