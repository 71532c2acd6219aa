"""Image-to-text and text-to-image retrieval (recall at k)."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from vit_jax.data.images import image_content
from vit_jax.data.sources import Source, Subset, captions_of
from vit_jax.errors import UserError, check_name
from vit_jax.evaluators import metrics, predictions
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params

CAPTIONS = ("first", "all")
EQUAL_CAPTIONS = ("shared", "apart")
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_to_text", "text_to_image"
EXAMPLES = 6
"""Number of queries in each direction whose nearest candidates are stored."""


class Retrieval:
    """Fraction of queries with a correct candidate among the k nearest.

    Metrics for both directions, `image_to_text` and `text_to_image`: `<direction>_recall@k`, and
    `<direction>_median_rank` and `<direction>_mean_rank` of the nearest correct candidate, where
    the nearest candidate of all has rank 1.

    Examples with the same image, as in a table with one row per caption, are one image with several
    captions. Captions are equal if they differ only in case and white space.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: source with captions.
            at: values of k.
            captions: captions that are used: the "first" of each example, or "all", as for the five
                of COCO and Flickr30k.
            equal_captions: treatment of equal captions of several images: "shared" (one candidate,
                correct for each of the images) or "apart" (one candidate per image, correct for
                that image only, as in published results on COCO and Flickr30k; the first of the
                candidates is the nearest).
        """

        data: str
        at: tuple[int, ...] = (1, 5, 10)
        captions: str = "first"
        equal_captions: str = "shared"

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source and reads its captions.

        Args:
            config: keys of the evaluator.
            embedder: computes embeddings of images and texts.

        Raises:
            UserError: a model without a text encoder, a key with an invalid value, or examples
                without captions.
        """
        embedder.require_text_embeddings()
        check_name(config.captions, CAPTIONS, "captions")
        check_name(config.equal_captions, EQUAL_CAPTIONS, "equal_captions")
        if not config.at or min(config.at) < 1:
            raise UserError(f"at={config.at!r}: expected values of k, 1 or more")
        self._at, self._embedder = config.at, embedder
        self._source = embedder.open_source(config.data)
        stop = 1 if config.captions == "first" else None
        pairs = [
            (row, text)
            for row in range(len(self._source))
            for text in captions_of(self._source.annotation(row))[:stop]
        ]
        # Pair i consists of the image `_image[i]` and the text `_text[i]`.
        rows, image_of_row = distinct_images(self._source)
        if len(rows) < len(self._source):
            self._source = Subset(self._source, rows)
        captions = [text for _, text in pairs]
        contents = [metrics.text_content(text) for text in captions]
        first = {content: i for i, content in reversed([*enumerate(contents)])}
        if config.equal_captions == "shared":
            kept = sorted(first.values(), key=captions.__getitem__)
            index = {contents[i]: number for number, i in enumerate(kept)}
            self._texts = [captions[i] for i in kept]
            self._contents = [contents[i] for i in kept]
            self._text = np.array([index[content] for content in contents])
        else:
            self._texts, self._contents = captions, contents
            self._text = np.arange(len(captions))
        self._image = np.array([image_of_row[row] for row, _ in pairs])

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        images = self._embedder.image_embeddings(params, self._source)
        texts = self._embedder.text_embeddings(params, self._texts)
        self._found = {}
        for direction, queries, candidates, ranks in (
            (
                IMAGE_TO_TEXT,
                images,
                texts,
                nearest_rank(images, texts, self._image, self._text, self._contents),
            ),
            (TEXT_TO_IMAGE, texts, images, nearest_rank(texts, images, self._text, self._image)),
        ):
            self._found[direction] = Examples.choose(ranks, queries, candidates)
            for k in self._at:
                yield f"{direction}_recall@{k}", float(np.mean(ranks < k))
            yield f"{direction}_median_rank", float(np.median(ranks + 1))
            yield f"{direction}_mean_rank", float(np.mean(ranks + 1))

    def predicted(self, limit: int) -> predictions.Arrays:
        """Returns what the last `run` predicted.

        Args:
            limit: largest number of ranks, which are taken at even distances.

        Returns:
            By direction, `<direction>_rank` int32, 1 for the nearest. Of Q examples from the best
            to the worst rank: `<direction>_query` (Q,), `<direction>_correct` (Q,), one of the
            correct candidates, `<direction>_query_rank` (Q,), `<direction>_top` (Q, 5), the nearest
            candidates, `<direction>_top_score` (Q, 5), their cosine similarities, and
            `<direction>_top_correct` (Q, 5). Texts are strings, images are thumbnails.
        """
        arrays = {"kind": np.array("retrieval")}
        for direction, found in self._found.items():
            for name, values in self._columns(direction, found, limit).items():
                arrays[f"{direction}_{name}"] = values
        return arrays

    def _columns(self, direction: str, found: "Examples", limit: int) -> dict[str, np.ndarray]:
        images, texts = (self._image, self._thumbnails), (self._text, self._captions)
        sides = (images, texts) if direction == IMAGE_TO_TEXT else (texts, images)
        (query, show_query), (candidate, show_candidate) = sides
        correct = [candidate[query == number] for number in found.queries]
        return {
            "rank": found.ranks[predictions.evenly(len(found.ranks), limit)],
            "query": show_query(found.queries),
            "correct": show_candidate(np.array([each[0] for each in correct])),
            "query_rank": found.ranks[found.queries],
            "top": show_candidate(found.top),
            "top_score": found.scores,
            "top_correct": np.array(
                [np.isin(*pair) for pair in zip(found.top, correct, strict=True)]
            ),
        }

    def _captions(self, texts: Int[np.ndarray, "*shape"]) -> np.ndarray:
        return np.array(self._texts, np.str_)[texts]

    def _thumbnails(self, images: Int[np.ndarray, "*shape"]) -> np.ndarray:
        rows = images.ravel().tolist()
        limit = self._embedder.max_image_pixels
        return predictions.thumbnails(self._source, rows, max_pixels=limit).reshape(images.shape)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Ranks of all queries, and the nearest candidates of some of them.

    Attributes:
        ranks: rank of the nearest correct candidate, 1 for the nearest.
        queries: queries from the best to the worst rank.
        top: nearest candidates of these queries.
        scores: their scores.
    """

    ranks: Int[np.ndarray, " all"]
    queries: Int[np.ndarray, " queries"]
    top: Int[np.ndarray, "queries k"]
    scores: Float[np.ndarray, "queries k"]

    @classmethod
    def choose(
        cls,
        ranks: Int[np.ndarray, " all"],
        queries: Float[np.ndarray, "all width"],
        candidates: Float[np.ndarray, "candidates width"],
    ) -> "Examples":
        """Chooses queries at even distances in the order of their ranks.

        Args:
            ranks: rank of each query's nearest correct candidate, 0 for the nearest.
            queries: embeddings of the queries.
            candidates: embeddings of the candidates.
        """
        order = np.argsort(ranks, kind="stable")
        chosen = order[predictions.evenly(len(ranks), EXAMPLES)]
        scores = queries[chosen] @ candidates.T
        top = np.argsort(-scores, axis=1, kind="stable")[:, : predictions.TOP]
        scores = np.take_along_axis(scores, top, axis=1)
        return cls((ranks + 1).astype(np.int32), chosen, top, scores)


def distinct_images(source: Source) -> tuple[list[int], list[int]]:
    """Recognizes images of equal content.

    Args:
        source: examples with an image each.

    Returns:
        The first example of each image; and for every example, the number of its image.
    """
    rows: list[int] = []
    number: dict[bytes, int] = {}
    images = []
    for row in range(len(source)):
        digest = hashlib.sha256(image_content(source[row]["image"])).digest()
        if digest not in number:
            number[digest] = len(rows)
            rows.append(row)
        images.append(number[digest])
    return rows, images


def nearest_rank(
    queries: Float[np.ndarray, "queries width"],
    candidates: Float[np.ndarray, "candidates width"],
    query: Int[np.ndarray, " pairs"],
    candidate: Int[np.ndarray, " pairs"],
    contents: Sequence[str] = (),
    *,
    chunk: int = 1024,
) -> Int[np.ndarray, " queries"]:
    """Computes the rank of each query's nearest correct candidate by scalar product.

    Args:
        queries: embeddings of the queries.
        candidates: embeddings of the candidates.
        query: query of each correct pair; every query occurs.
        candidate: candidate of each correct pair.
        contents: content of each candidate, see `metrics.best_rank`.
        chunk: number of queries whose scores are in memory at once.

    Returns:
        Ranks, 0 for the nearest.
    """
    ranks = []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ candidates.T
        correct = np.zeros(scores.shape, bool)
        inside = (query >= start) & (query < start + chunk)
        correct[query[inside] - start, candidate[inside]] = True
        ranks.append(metrics.best_rank(scores, correct, contents))
    return np.concatenate(ranks)
