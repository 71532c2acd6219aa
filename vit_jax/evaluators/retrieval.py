"""Image-to-text and text-to-image retrieval (recall at k)."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from vit_jax.data.images import image_content
from vit_jax.data.sources import Source, Subset, captions_of
from vit_jax.errors import UserError, check_name
from vit_jax.evaluators import metrics
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params

CAPTIONS = ("first", "all")
EQUAL_CAPTIONS = ("shared", "apart")


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
        embedder.require_text()
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
        for direction, ranks in (
            ("image_to_text", nearest_rank(images, texts, self._image, self._text, self._contents)),
            ("text_to_image", nearest_rank(texts, images, self._text, self._image)),
        ):
            for k in self._at:
                yield f"{direction}_recall@{k}", float(np.mean(ranks < k))
            yield f"{direction}_median_rank", float(np.median(ranks + 1))
            yield f"{direction}_mean_rank", float(np.mean(ranks + 1))


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
