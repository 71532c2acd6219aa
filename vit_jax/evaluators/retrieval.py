"""Image to text and text to image retrieval (recall at k)."""

from collections.abc import Iterator, Sequence

import numpy as np

from vit_jax.data.examples import captions_of
from vit_jax.errors import UserError, check_name
from vit_jax.evaluators import metrics
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params

CAPTIONS = ("first", "all")
EQUAL_CAPTIONS = ("shared", "apart")
_CHUNK = 1024  # queries whose scores are in memory at once


class Retrieval:
    """Fraction of queries with a right answer among the k nearest.

    Metrics in both directions, `image_to_text` and `text_to_image`: `..._recall@k`, and
    `..._median_rank` and `..._mean_rank` of the best right answer, 1 for the top.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        data: str,
        at: Sequence[int] = (1, 5, 10),
        captions: str = "first",
        equal_captions: str = "shared",
    ):
        """Opens the source.

        Args:
            embedder: of images and texts.
            data: source with captions.
            at: the values of k.
            captions: the "first" of each image, or "all", as for COCO's and Flickr30k's five.
            equal_captions: "shared": a text is there once and all images with it are right;
                "apart": each image's text stands for itself and the others' are wrong, as in
                published metrics on COCO and Flickr30k.
        """
        check_name(captions, CAPTIONS, "captions")
        check_name(equal_captions, EQUAL_CAPTIONS, "equal_captions")
        if not at or min(at) < 1:
            raise UserError(f"at={at!r}: expected values of k, 1 or more")
        self._embedder, self._at = embedder, tuple(at)
        self._source = embedder.open(data)
        pairs = []
        for row in range(len(self._source)):
            texts = captions_of(self._source.annotation(row))
            pairs += [(row, text) for text in texts[: 1 if captions == "first" else None]]
        # Pair i is of image `_image[i]` and text `_text[i]`.
        self._image = np.array([row for row, _ in pairs])
        if equal_captions == "shared":
            self._texts = sorted({text for _, text in pairs})
            place = {text: i for i, text in enumerate(self._texts)}
            self._text = np.array([place[text] for _, text in pairs])
        else:
            self._texts = [text for _, text in pairs]
            self._text = np.arange(len(pairs))

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics in both directions."""
        images = self._embedder.images(params, self._source)
        texts = self._embedder.texts(params, self._texts)
        for direction, ranks in (
            ("image_to_text", nearest_rank(images, texts, self._image, self._text)),
            ("text_to_image", nearest_rank(texts, images, self._text, self._image)),
        ):
            for k in self._at:
                yield f"{direction}_recall@{k}", float(np.mean(ranks < k))
            yield f"{direction}_median_rank", float(np.median(ranks + 1))
            yield f"{direction}_mean_rank", float(np.mean(ranks + 1))


def nearest_rank(
    queries: np.ndarray, answers: np.ndarray, query: np.ndarray, answer: np.ndarray
) -> np.ndarray:
    """Rank of each query's best right answer by cosine, 0 for the top; (Q,) int.

    Args:
        queries: (Q, D) unit vectors.
        answers: (A, D) unit vectors.
        query: (P,) of the right pairs, each query at least once.
        answer: (P,) of the right pairs.
    """
    ranks = []
    for start in range(0, len(queries), _CHUNK):
        scores = queries[start : start + _CHUNK] @ answers.T
        right = np.zeros(scores.shape, bool)
        inside = (query >= start) & (query < start + _CHUNK)
        right[query[inside] - start, answer[inside]] = True
        ranks.append(best_rank(scores, right))
    return np.concatenate(ranks)


def best_rank(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank of the best right answer of each query, 0 for the top.

    Args:
        scores: (queries, answers).
        right: (queries, answers) bool, at least one a row.

    Returns:
        (queries,) int. Wrong answers with the same score come before the right one.
    """
    best = np.max(np.where(right, scores, -np.inf), axis=1, keepdims=True)
    return np.sum((scores >= metrics.tied(scores, best)) & ~right, axis=1)
