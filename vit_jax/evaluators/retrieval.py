"""Image to text and text to image retrieval (recall at k)."""

from collections.abc import Iterator, Sequence

import numpy as np

from vit_jax.data.sources import open_source
from vit_jax.data.transforms import captions_of
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.functional import Params


class Retrieval:
    """Share of queries with a right answer among the k nearest.

    Pictures with the same caption are all right answers to it. Metrics:
    `image_to_text_recall@k` and `text_to_image_recall@k`.
    """

    def __init__(self, embedder: Embedder, *, data: str, at: Sequence[int] = (1, 5, 10)):
        """Opens the source.

        Args:
            embedder: of pictures and texts.
            data: source with captions; the first caption of each picture is used.
            at: the values of k.
        """
        self._embedder, self._at = embedder, tuple(at)
        self._source = open_source(data)
        rows = range(len(self._source))
        captions = [captions_of(self._source.annotation(row))[0] for row in rows]
        self._texts = sorted(set(captions))
        self._caption = np.searchsorted(self._texts, captions)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the recalls in both directions."""
        images = self._embedder.images(params, self._source)
        texts = self._embedder.texts(params, self._texts)
        scores = images @ texts.T
        right = self._caption[:, None] == np.arange(len(self._texts))[None]
        for direction, matrix, answers in (
            ("image_to_text", scores, right),
            ("text_to_image", scores.T, right.T),
        ):
            ranks = best_rank(matrix, answers)
            for k in self._at:
                yield f"{direction}_recall@{k}", float(np.mean(ranks < k))


def best_rank(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Place of the best right answer of each query, 0 for the top.

    Args:
        scores: (queries, answers).
        right: (queries, answers) bool, at least one a row.

    Returns:
        (queries,) int. Wrong answers with the same score come before the right one.
    """
    best = np.max(np.where(right, scores, -np.inf), axis=1, keepdims=True)
    return np.sum((scores >= best) & ~right, axis=1)
