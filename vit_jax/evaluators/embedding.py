"""Embeddings of whole sources and texts, exact for any batch size, devices and processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.data.batches import RandomAccess
from vit_jax.data.preprocess import normalize, preprocess
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError
from vit_jax.models.functional import ModelDef, Params
from vit_jax.parallel.mesh import replicated, to_devices


class Embedder:
    """Runs the towers over pictures and texts in padded batches.

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
            **preprocessing: of pictures, see `data.preprocess`.
        """
        self._mesh, self._batch_size, self._tokenizer = mesh, batch_size, tokenizer
        self._preprocessing = {"size": image_size, **preprocessing}
        self._cache: dict[tuple, np.ndarray] = {}

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
        if self._tokenizer is None:
            raise UserError("this model has no text tower: zero-shot and retrieval need one")
        tokens = self._tokenizer(texts)
        return self._run(self._embed_texts, params, "tokens", len(tokens), lambda i: tokens[i])

    def prompts(self, params: Params, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """Class embeddings (len(names), D): the mean of the templates' unit vectors, of length 1.

        CLIP, section 3.1.4: templates are averaged in the embedding space.
        """
        check_templates(templates)
        texts = [template.format(name) for name in names for template in templates]
        each = self.texts(params, texts).reshape(len(names), len(templates), -1)
        mean = each.mean(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def logit_parameters(self, params: Params) -> tuple[float, float]:
        """The model's own scale and bias of the cosine similarities."""
        scale, bias = self._logits(params)
        return float(scale), 0.0 if bias is None else float(bias)

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """A decoded picture to the model's uint8 input (image_size, image_size, 3)."""
        return preprocess(image, **self._preprocessing)

    def forget(self) -> None:
        """Drops kept embeddings, which belong to one set of parameters."""
        self._cache.clear()

    def _over_source(
        self, kind: str, function: Any, params: Params, source: RandomAccess
    ) -> np.ndarray:
        key = (kind, id(source))
        if key not in self._cache:
            self._cache[key] = self._run(
                function,
                params,
                "image",
                len(source),
                lambda i: self.preprocess(source[i]["image"]),
            )
        return self._cache[key]

    def _run(
        self,
        function: Any,
        params: Params,
        field: str,
        count: int,
        row: Callable[[int], np.ndarray],
    ) -> np.ndarray:
        """Applies a compiled function to rows 0 to count - 1."""
        rows = []
        for batch in self._batches(field, count, row):
            rows.append(function(params, to_devices(batch, self._mesh)))
        return np.concatenate([np.asarray(r, np.float32) for r in rows])[:count]

    def _batches(
        self, field: str, count: int, row: Callable[[int], np.ndarray]
    ) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of each global batch; beyond the end the last row is repeated."""
        local = self._batch_size // jax.process_count()
        for start in range(0, count, self._batch_size):
            first = start + jax.process_index() * local
            indices = [min(i, count - 1) for i in range(first, first + local)]
            yield {field: np.stack([row(i) for i in indices])}


def check_templates(templates: Sequence[str]) -> None:
    """Refuses an empty list and a template without exactly one `{}`."""
    if not templates:
        raise UserError("no prompt templates: expected at least one, as '{}'")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"prompt template {template!r}: expected exactly one {{}}")
