"""Embeddings of whole sources and texts, exact for any batch size, devices and processes."""

import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.data.loader import RandomAccess
from vit_jax.data.sources import Source, open_source
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError
from vit_jax.evaluators import cache as cache_lib
from vit_jax.evaluators import metrics
from vit_jax.evaluators.progress import Progress
from vit_jax.evaluators.prompts import check_templates
from vit_jax.inputs import normalize, preprocess
from vit_jax.models.definition import ModelDef, Params
from vit_jax.parallel.mesh import replicated, to_devices

_READERS = min(16, os.cpu_count() or 1)  # threads that decode the next batch


class Embedder:
    """Runs the towers over images and texts in padded batches.

    Embeddings of a source are kept until `forget`, so that several evaluators of one round share
    them.
    """

    def __init__(
        self,
        model: ModelDef,
        *,
        mesh: Mesh,
        tokenizer: Tokenizer | None,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        cache: str | os.PathLike[str] | None = None,
        **preprocessing: Any,
    ):
        """Declares the functions that are compiled at first use.

        Args:
            model: the model.
            mesh: devices; the batch is split over them.
            tokenizer: for models with text.
            image_size: side of the model's input, px.
            mean: of the normalisation, one a channel.
            std: of the normalisation, one a channel.
            batch_size: global; the last batch is padded.
            cache: folder of features that outlive the process, see `evaluators.cache`; None keeps
                them in memory.
            **preprocessing: of images, see `data.preprocess`.
        """
        self.mesh = mesh
        self._batch_size, self._tokenizer = batch_size, tokenizer
        self._preprocessing = {"size": image_size, **preprocessing}
        self._cache = pathlib.Path(cache) if cache is not None else None
        self._recipe = [model.family, model.architecture, model.execution]
        self._recipe += [self._preprocessing, list(mean), list(std)]
        self._sources: dict[tuple, Source] = {}
        self._kept: dict[tuple, np.ndarray] = {}
        self._weights: tuple[Params, str] | None = None

        def embed_images(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
            images = normalize(batch["image"], tuple(mean), tuple(std))
            return model.bind(params).encode_image(images, normalize=True)

        def image_features(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
            module = model.bind(params)
            tower = getattr(module, "image", module)
            return tower.encode_image(normalize(batch["image"], tuple(mean), tuple(std)))

        def classify(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
            return model.bind(params)(normalize(batch["image"], tuple(mean), tuple(std)))

        def embed_texts(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
            return model.bind(params).encode_text(batch["tokens"], normalize=True)

        # Replicated results are whole on every process.
        compiled: dict[str, Any] = {"out_shardings": replicated(mesh)}
        self._embed_images = jax.jit(embed_images, **compiled)
        self._image_features = jax.jit(image_features, **compiled)
        self._classify = jax.jit(classify, **compiled)
        self._embed_texts = jax.jit(embed_texts, **compiled)
        self._logits = jax.jit(lambda params: model.bind(params).logit_parameters(), **compiled)

    def open(self, spec: str, names_file: str | None = None) -> Source:
        """The source of that spec, one for all evaluators."""
        key = (spec, names_file)
        if key not in self._sources:
            self._sources[key] = open_source(spec, names_file)
        return self._sources[key]

    def images(self, params: Params, source: RandomAccess) -> np.ndarray:
        """Embeddings of length 1, float32 (N, D), in the source's order."""
        return self._over_source("images", self._embed_images, params, source)

    def features(self, params: Params, source: RandomAccess) -> np.ndarray:
        """The image tower's pooled features before any projection, float32 (N, D)."""
        return self._over_source("features", self._image_features, params, source)

    def logits(self, params: Params, source: RandomAccess) -> np.ndarray:
        """Outputs of a classifier's head, float32 (N, num_classes)."""
        return self._over_source("logits", self._classify, params, source)

    def texts(self, params: Params, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of length 1, float32 (N, D)."""
        tokens = self._tokenize(texts)
        rows = self._rows(params, len(tokens), lambda: ("texts", tokens.tolist()))
        return self._fill(
            rows, "texts", self._embed_texts, params, "tokens", len(tokens), lambda i: tokens[i]
        )

    def prompts(self, params: Params, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """Class embeddings (len(names), D): the mean of the templates' unit vectors, of length 1.

        CLIP, section 3.1.4: templates are averaged in the embedding space.
        """
        check_templates(templates)
        tokens = self._tokenize([t.format(name) for name in names for t in templates])
        rows = self._rows(params, len(names), lambda: ("prompts", len(templates), tokens.tolist()))
        if rows.done < len(names):
            each = self._fill(
                cache_lib.RowList(), "prompts", self._embed_texts, params, "tokens", len(tokens),
                lambda i: tokens[i],
            )  # fmt: skip
            mean = each.reshape(len(names), len(templates), -1).mean(axis=1)
            mean /= np.linalg.norm(mean, axis=1, keepdims=True)
            rows.append(mean[rows.done :])
        return rows.read()

    def probabilities(self, params: Params, cosines: np.ndarray) -> np.ndarray:
        """What the model makes of cosine similarities (..., C), float64.

        Softmax over the last axis; for a model with a logit bias, which the sigmoid loss trains,
        each pair's own probability.
        """
        scale, bias = self._logits(params)
        if bias is None:
            return metrics.softmax(float(scale) * cosines)
        return metrics.sigmoid(float(scale) * cosines + float(bias))

    def preprocess(self, image: Any) -> np.ndarray:
        """An image of a source to the model's uint8 input (image_size, image_size, 3)."""
        return preprocess(image, **self._preprocessing)

    def forget(self) -> None:
        """Drops kept embeddings, which belong to one set of parameters."""
        self._kept.clear()
        self._weights = None

    def _tokenize(self, texts: Sequence[str]) -> np.ndarray:
        if self._tokenizer is None:
            raise UserError(
                "this model has no text tower, or no tokenizer: zero-shot and retrieval need both"
            )
        return self._tokenizer(texts)

    def _over_source(
        self, kind: str, function: Any, params: Params, source: RandomAccess
    ) -> np.ndarray:
        key = (kind, id(source))
        if key not in self._kept:
            count = len(source)
            rows = self._rows(params, count, lambda: (kind, cache_lib.source_fingerprint(source)))
            self._kept[key] = self._fill(
                rows, kind, function, params, "image", count,
                lambda i: self.preprocess(source[i]["image"]),
            )  # fmt: skip
        return self._kept[key]

    def _rows(self, params: Params, count: int, contents: Callable[[], tuple]) -> cache_lib.Rows:
        """Where `count` rows go; `contents` tells what they are made from, weights apart."""
        if self._cache is None:
            return cache_lib.RowList()
        if self._weights is None or self._weights[0] is not params:
            self._weights = params, cache_lib.weights_fingerprint(params)
        key = cache_lib.digest(self._weights[1], self._recipe, contents())
        return cache_lib.RowFile(self._cache, key, count)

    def _fill(
        self,
        rows: cache_lib.Rows,
        kind: str,
        function: Any,
        params: Params,
        field: str,
        count: int,
        row: Callable[[int], np.ndarray],
    ) -> np.ndarray:
        """Applies a compiled function to the rows that are not there yet.

        Raises:
            UserError: an output is not finite.
        """
        progress = Progress(kind, count, rows.done)
        try:
            for batch in self._batches(field, rows.done, count, row):
                new = np.asarray(function(params, to_devices(batch, self.mesh)), np.float32)
                new = new[: count - rows.done]
                if not (finite := np.isfinite(new).all(axis=1)).all():
                    first = rows.done + int(np.argmin(finite))
                    raise UserError(
                        f"{kind} of row {first} (and {np.sum(~finite) - 1} more of its batch) are "
                        "NaN or infinite: the weights are damaged, or overflow in compute.dtype"
                    )
                rows.append(new)
                progress.show(rows.done)
        finally:
            rows.save()
            progress.close()
        return rows.read()

    def _batches(
        self, field: str, start: int, count: int, row: Callable[[int], np.ndarray]
    ) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of each global batch; beyond the end the last row is repeated.

        Rows of the next batch are read while the devices compute.
        """
        local = self._batch_size // jax.process_count()
        own = jax.process_index() * local
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            ahead: list[concurrent.futures.Future] = []
            for first in range(start, count + self._batch_size, self._batch_size):
                current = ahead
                ahead = []
                if first < count:
                    indices = range(first + own, first + own + local)
                    ahead = [pool.submit(row, min(i, count - 1)) for i in indices]
                if current:
                    yield {field: np.stack([future.result() for future in current])}
