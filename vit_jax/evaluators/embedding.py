"""Embeddings of whole sources and texts, exact for any batch size, devices and processes."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vit_jax.data.examples import check_templates
from vit_jax.data.images import MAX_PIXELS, read_image
from vit_jax.data.sources import Source, open_source
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError
from vit_jax.evaluators import cache as cache_lib
from vit_jax.evaluators import metrics
from vit_jax.evaluators.batching import device_batches, not_finite
from vit_jax.inputs import ImageInputs
from vit_jax.inputs.patches import Images
from vit_jax.models.definition import ModelDef, Params
from vit_jax.parallel.mesh import replicated
from vit_jax.parallel.sharding import tracing_for
from vit_jax.paths import as_local_path

# Examples with the field `image`.
Examples = Source | Sequence[Mapping[str, Any]]
# (bound model, normalized images or patches) -> one row per image.
ImageFunction = Callable[[Any, Any], Float[Array, "batch features"]]


def embed_images(model: Any, images: Images) -> Float[Array, "batch features"]:
    """Computes image embeddings of unit length in the space shared with texts."""
    return model.encode_image(images, normalize=True)


def image_features(model: Any, images: Images) -> Float[Array, "batch features"]:
    """Computes the pooled features of the image encoder, before any projection."""
    return getattr(model, "image", model).encode_image(images)


def class_logits(model: Any, images: Images) -> Float[Array, "batch classes"]:
    """Computes the outputs of a classifier."""
    return model(images)


class Embedder:
    """Runs a model over images and texts in padded batches.

    Embeddings of a source are kept in memory until `forget` is called, so that the evaluators of
    one round share them.

    Attributes:
        model: model without parameters.
        inputs: image preprocessing.
        mesh: devices; batches are split over them.
        tokenizer: tokenizer; None for models without text.
        batch_size: examples per batch over all devices.
        max_image_pixels: largest number of pixels of an image; 0 for any.
    """

    def __init__(
        self,
        model: ModelDef,
        *,
        inputs: ImageInputs,
        mesh: Mesh,
        tokenizer: Tokenizer | None = None,
        batch_size: int,
        cache: str | os.PathLike[str] | None = None,
        max_image_pixels: int = MAX_PIXELS,
    ):
        """Declares the functions, which are compiled at first use.

        Args:
            model: model without parameters.
            inputs: image preprocessing.
            mesh: devices; batches are split over them.
            tokenizer: tokenizer, for models that encode text.
            batch_size: examples per batch over all devices. A batch is padded to a multiple of the
                devices.
            cache: folder in which embeddings are kept, see `vit_jax.evaluators.cache`; None keeps
                them in memory only.
            max_image_pixels: largest number of pixels of an image; 0 for any.

        Raises:
            UserError: a batch size that is not positive.
        """
        check_positive(batch_size, "eval_batch_size")
        self.model, self.inputs, self.mesh, self.batch_size = model, inputs, mesh, batch_size
        self.tokenizer, self.max_image_pixels = tokenizer, max_image_pixels
        self._cache = as_local_path(cache, "embeddings are mapped into memory") if cache else None
        self._sources: dict[tuple[str, str | None], Source] = {}
        self._kept: dict[tuple[str, int], tuple[Examples, np.ndarray]] = {}
        self._weights: tuple[Params, str] | None = None
        self._compiled: dict[Callable, Any] = {}
        self._image_functions: dict[ImageFunction, Any] = {}

    def open_source(self, spec: str, names_file: str | None = None) -> Source:
        """Opens a source, one object for all evaluators.

        Args:
            spec: source, see `vit_jax.data.sources`.
            names_file: file with the labels of a flat folder.
        """
        key = (spec, names_file)
        if key not in self._sources:
            joint = "&" if "?" in spec else "?"
            self._sources[key] = open_source(
                f"{spec}{joint}names_file={names_file}" if names_file else spec
            )
        return self._sources[key]

    def image_embeddings(
        self, params: Params, source: Examples
    ) -> Float[np.ndarray, "examples width"]:
        """Computes the embeddings of a source's images: float32, unit length, in its order."""
        return self.apply("images", embed_images, params, source)

    def image_features(
        self, params: Params, source: Examples
    ) -> Float[np.ndarray, "examples width"]:
        """Computes the image encoder's pooled features before any projection, float32."""
        return self.apply("features", image_features, params, source)

    def class_logits(
        self, params: Params, source: Examples
    ) -> Float[np.ndarray, "examples classes"]:
        """Computes the outputs of a classifier for a source's images, float32."""
        return self.apply("logits", class_logits, params, source)

    def apply(
        self, name: str, function: ImageFunction, params: Params, source: Examples
    ) -> Float[np.ndarray, "examples width"]:
        """Applies a function of the model to all images of a source.

        Args:
            name: name of the function: part of the key under which results are kept.
            function: computes one row per image, from the model and normalized images.
            params: parameters of the model.
            source: examples with an image each.

        Returns:
            Rows of the images in the order of the source, float32.

        Raises:
            UserError: a row is not finite.
        """
        key = (name, id(source))
        if key not in self._kept:
            rows = self._rows(
                params, len(source), lambda: (name, cache_lib.source_fingerprint(source))
            )

            def read(row: int) -> dict[str, np.ndarray]:
                image = read_image(source[row]["image"], max_pixels=self.max_image_pixels)
                return {"image": self.inputs.pack(self.inputs(image))}

            compiled = self._compile_for_images(function)
            found = self._fill(rows, name, compiled, params, len(source), read)
            self._kept[key] = source, found  # the source stays alive, and its id unique
        return self._kept[key][1]

    def text_embeddings(
        self, params: Params, texts: Sequence[str]
    ) -> Float[np.ndarray, "texts width"]:
        """Computes the embeddings of texts: float32, unit length."""
        tokens = self.tokenize(texts)
        rows = self._rows(params, len(tokens), lambda: ("texts", tokens.tolist()))
        return self._embed_tokens(rows, "texts", params, tokens)

    def class_embeddings(
        self, params: Params, names: Sequence[str], templates: Sequence[str]
    ) -> Float[np.ndarray, "classes width"]:
        """Computes the embeddings of classes: the normalized mean over prompt templates.

        Templates are averaged in the embedding space (CLIP, section 3.1.4).

        Args:
            params: parameters of the model.
            names: names of the classes.
            templates: prompt templates, each with one `{}` for the name.

        Returns:
            Embeddings of unit length.
        """
        check_templates(templates)
        tokens = self.tokenize([t.format(name) for name in names for t in templates])
        rows = self._rows(params, len(names), lambda: ("prompts", len(templates), tokens.tolist()))
        if rows.done < len(names):
            prompts = self._embed_tokens(cache_lib.RowList(), "prompts", params, tokens)
            mean = prompts.reshape(len(names), len(templates), -1).mean(axis=1)
            mean /= np.linalg.norm(mean, axis=1, keepdims=True)
            rows.append(mean[rows.done :])
        return rows.read()

    def probabilities(
        self, params: Params, cosines: Float[np.ndarray, "*batch classes"]
    ) -> Float[np.ndarray, "*batch classes"]:
        """Computes the model's probabilities of classes from cosine similarities.

        Args:
            params: parameters of the model.
            cosines: cosine similarities of images and classes.

        Returns:
            Softmax over the last axis, float64. For a model with a logit bias, which the sigmoid
            loss trains, the independent probability of each pair.
        """
        scale, bias = self.compile(_logit_parameters)(params)
        if bias is None:
            return metrics.softmax(float(scale) * cosines)
        return metrics.sigmoid(float(scale) * cosines + float(bias))

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Converts texts to token ids, int32.

        Raises:
            UserError: see `require_text`.
        """
        return self.require_text()(texts)

    def require_text(self) -> Tokenizer:
        """Returns the tokenizer. Evaluators of texts call it before they read data.

        Raises:
            UserError: the model has no text encoder, or its tokenizer was not given.
        """
        if self.tokenizer is not None:
            return self.tokenizer
        if hasattr(self.model.architecture, "text"):
            raise UserError("the tokenizer of the model is missing: texts cannot be evaluated")
        raise UserError(
            "the model has no text encoder; for its class logits use the evaluator "
            "'classification', for its features 'probe', 'knn' or 'fewshot'"
        )

    def require_text_embeddings(self) -> None:
        """Checks that the model embeds texts in the space of its images.

        Raises:
            UserError: it does not, or see `require_text`.
        """
        self.require_text()
        if not hasattr(self.model.bind(self.model.shapes()), "encode_text"):
            raise UserError(
                f"the model {type(self.model.architecture).__name__} does not embed texts; for "
                "captions use the evaluators 'captioning' and 'caption_zeroshot'"
            )

    def compile(self, function: Callable) -> Any:
        """Compiles a function of the model for all devices.

        Args:
            function: takes the model bound to parameters, and further arrays.

        Returns:
            The jitted function, which takes the parameters in place of the model. Its outputs are
            replicated, so that every process has the whole of them.
        """
        if function not in self._compiled:

            def apply(params: Params, *arrays: Any) -> Any:
                with tracing_for(self.model, self.mesh):
                    return function(self.model.bind(params), *arrays)

            self._compiled[function] = jax.jit(apply, out_shardings=replicated(self.mesh))
        return self._compiled[function]

    def forget(self) -> None:
        """Drops kept embeddings, which belong to one set of parameters."""
        self._kept.clear()
        self._weights = None

    def _embed_tokens(
        self, rows: cache_lib.Rows, name: str, params: Params, tokens: np.ndarray
    ) -> np.ndarray:
        compiled = self.compile(_embed_texts)
        return self._fill(
            rows, name, compiled, params, len(tokens), lambda row: {"tokens": tokens[row]}
        )

    def _compile_for_images(self, function: ImageFunction) -> Any:
        if function not in self._image_functions:

            def apply(model: Any, packed: jax.Array) -> jax.Array:
                return function(model, self.inputs.normalize(packed))

            self._image_functions[function] = self.compile(apply)
        return self._image_functions[function]

    def _rows(self, params: Params, count: int, contents: Callable[[], tuple]) -> cache_lib.Rows:
        """Makes the storage of `count` rows; `contents` describes their inputs, for the cache."""
        if self._cache is None:
            return cache_lib.RowList()
        if self._weights is None or self._weights[0] is not params:
            self._weights = params, cache_lib.weights_fingerprint(params)
        computation = (
            repr(self.model.architecture), self.model.execution, dataclasses.asdict(self.inputs),
        )  # fmt: skip
        key = cache_lib.digest(self._weights[1], computation, contents())
        return cache_lib.RowFile(self._cache, key, count)

    def _fill(
        self,
        rows: cache_lib.Rows,
        name: str,
        compiled: Any,
        params: Params,
        count: int,
        read: Callable[[int], dict[str, np.ndarray]],
    ) -> np.ndarray:
        """Computes the rows that are not stored yet, and returns all of them."""
        batches = device_batches(
            read,
            mesh=self.mesh,
            start=rows.done,
            stop=count,
            batch_size=self.batch_size,
            description=name,
        )
        try:
            for batch, part in batches:
                (inputs,) = batch.values()
                new = np.asarray(compiled(params, inputs), np.float32)[: len(part)]
                _check_finite(new, name, rows.done)
                rows.append(new)
        finally:
            rows.save()
        return rows.read()


def check_positive(batch_size: int, key: str) -> None:
    """Refuses a batch size below 1.

    Args:
        batch_size: number of examples.
        key: key of the batch size, for the message.

    Raises:
        UserError: the batch size is not positive.
    """
    if batch_size < 1:
        raise UserError(f"{key}={batch_size}: expected 1 or more examples per batch")


def _embed_texts(model: Any, tokens: Int[Array, "batch length"]) -> Float[Array, "batch features"]:
    return model.encode_text(tokens, normalize=True)


def _logit_parameters(model: Any) -> Any:
    return model.logit_parameters()


def _check_finite(rows: np.ndarray, name: str, first: int) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = first + int(np.argmin(finite))
        raise not_finite(f"{name} of row {row} (and {np.sum(~finite) - 1} more of its batch)")
