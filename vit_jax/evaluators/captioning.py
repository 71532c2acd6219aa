"""Captions of held-out images: their likelihood, and generated ones."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax.data.images import read_image
from vit_jax.data.sources import captions_of
from vit_jax.errors import UserError, check_name
from vit_jax.evaluators import caption_scores, metrics
from vit_jax.evaluators.batching import device_batches, not_finite
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params
from vit_jax.models.layers.generation import Cache, NextLogits, beam_search, sample
from vit_jax.objectives.token_loss import caption_sums

METHODS = ("greedy", "beam", "top_p", "none")
CHUNK_TOKENS = 1024
"""Number of tokens per device whose logits exist at a time."""


class Captioning:
    """Likelihood of held-out captions, and comparison of generated captions with them.

    Metrics of the first caption of each example, predicted token by token, with the end of text:
    `log_likelihood`, the mean of its logarithm, `nats_per_token`, its negative mean over all
    tokens, `perplexity`, the exponential of the latter, and `token_accuracy`, the fraction of
    tokens with the largest probability.

    Metrics of generated captions: `exact_match`, the fraction that equal one of the image's
    captions except for case and white space, and the `scores`. Captions are compared as the
    tokenizer decodes them.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: source with captions.
            template: prompt template with one `{}`, in which all captions are put.
            method: generation: "greedy", "beam" (search), "top_p" (nucleus sampling) or "none".
            scores: scores of generated captions, of "bleu" and "cider" (extra [captioning]).
            beams: number of captions that the search keeps at a time.
            length_penalty: exponent of the length in the choice of the search's result, see
                `generation.beam_search`.
            top_p: probability of the nucleus.
            temperature: divisor of the logits in sampling.
            seed: PRNG seed of sampling.
        """

        data: str
        template: str = "{}"
        method: str = "greedy"
        scores: tuple[str, ...] = ()
        beams: int = 4
        length_penalty: float = 1.0
        top_p: float = 0.9
        temperature: float = 1.0
        seed: int = 0

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source and reads its captions.

        Args:
            config: keys of the evaluator.
            embedder: gives model, image preprocessing, tokenizer and devices.

        Raises:
            UserError: a model without a decoder of captions, a key with an invalid value, or
                examples without captions.
            MissingPackageError: the package of a score is not installed.
        """
        check_captioner(embedder)
        check_name(config.method, METHODS, "method")
        for score in config.scores:
            check_name(score, caption_scores.SCORES, "score")
            caption_scores.check_installed(score)
        if config.scores and config.method == "none":
            raise UserError(
                "scores compare generated captions: set method to greedy, beam or top_p"
            )
        if config.beams < 1 or not 0 < config.top_p <= 1 or config.temperature <= 0:
            raise UserError(
                f"beams={config.beams}, top_p={config.top_p}, temperature={config.temperature}: "
                "expected 1 or more beams, a probability above 0, and a positive temperature"
            )
        self._config, self._embedder = config, embedder
        self._source = embedder.open_source(config.data)
        self._references = [
            [config.template.format(text) for text in captions_of(self._source.annotation(row))]
            for row in range(len(self._source))
        ]
        self._tokens = embedder.tokenize([texts[0] for texts in self._references])

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        sums, rows = [], []
        caption = self._embedder.compile(self._caption)
        batches = device_batches(
            self._read,
            mesh=self._embedder.mesh,
            stop=len(self._source),
            batch_size=self._embedder.batch_size,
            description="captions",
        )
        for batch, part in batches:
            outputs = caption(params, batch["image"], batch["tokens"], batch["row"])
            found, ids = (np.asarray(x)[: len(part)] for x in outputs)
            if not np.isfinite(found).all():
                raise not_finite(f"log-likelihoods of examples {part.start} to {part.stop - 1}")
            sums.append(found)
            rows.append(ids)
        losses, correct, counts = np.concatenate(sums).astype(np.float64).T
        yield "log_likelihood", -float(losses.mean())
        yield "nats_per_token", (nats := float(losses.sum() / counts.sum()))
        yield "perplexity", float(np.exp(nats))
        yield "token_accuracy", float(correct.sum() / counts.sum())
        if self._config.method != "none":
            yield from self._compare(np.concatenate(rows))

    def _compare(self, rows: Int[np.ndarray, "examples length"]) -> Iterator[tuple[str, float]]:
        """Yields the metrics of generated captions."""
        tokenizer = self._embedder.require_text()
        self.captions = [tokenizer.text_of(row) for row in rows.tolist()]
        pairs = zip(map(metrics.text_content, self.captions), self._references, strict=True)
        yield (
            "exact_match",
            float(np.mean([found in map(metrics.text_content, wanted) for found, wanted in pairs])),
        )
        for score in self._config.scores:
            yield score, caption_scores.SCORES[score](self.captions, self._references)

    def _read(self, row: int) -> dict[str, np.ndarray]:
        embedder = self._embedder
        image = read_image(self._source[row]["image"], max_pixels=embedder.max_image_pixels)
        packed = embedder.inputs.pack(embedder.inputs(image))
        return {"image": packed, "tokens": self._tokens[row], "row": np.asarray(row, np.int32)}

    def _caption(
        self, model: Any, packed: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Sums over the tokens of captions, and ids of generated ones, of rows of the source."""
        memory = model.encode_memory(self._embedder.inputs.normalize(packed))
        states = model.caption_states(tokens, memory)
        sums = caption_sums(model, tokens, states, CHUNK_TOKENS)
        generates = self._config.method != "none"
        return sums, self._generate(model, memory, rows) if generates else tokens[:, :0]

    def _generate(self, model: Any, memory: jax.Array, rows: jax.Array) -> jax.Array:
        """Ids of generated captions of the examples in these rows of the source."""
        config, tokenizer = self._config, self._embedder.require_text()
        layout, length = tokenizer.layout, tokenizer.context_length
        logits, batch = caption_logits(model, memory), len(memory)
        ids: dict[str, Any] = {"end_id": layout.end, "pad_id": layout.pad}
        if model.num_given:
            ids["given"] = (layout.start,)
        if config.method == "top_p":
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
                jax.random.key(config.seed), rows
            )
            ids |= {"top_p": config.top_p, "temperature": config.temperature}
            return sample(logits, model.caption_cache(batch, length), keys, length, **ids).tokens
        beams = config.beams if config.method == "beam" else 1
        cache = model.caption_cache(batch * beams, length)
        ids |= {"beams": beams, "length_penalty": config.length_penalty}
        return beam_search(logits, cache, batch, length, **ids).tokens


def caption_logits(model: Any, memory: Float[Array, "batch patches dim"]) -> NextLogits:
    """Logits of the next token of captions, as generation takes them.

    Args:
        model: bound captioner, see "Other kinds of model" in models/README.md.
        memory: patches of each image.
    """
    kept = model.decoder.key_values(memory)

    def next_logits(tokens: jax.Array, at: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        states, cache = model.next_caption_states(tokens, at, cache, kept)
        return model.decoder.logits(states), cache

    return next_logits


def check_captioner(embedder: Embedder) -> None:
    """Refuses models without a decoder of captions.

    Args:
        embedder: gives the model.

    Raises:
        UserError: the model has none, or its tokenizer is missing.
    """
    if not hasattr(embedder.model.bind(embedder.model.shapes()), "caption_states"):
        raise UserError(
            "this evaluation needs a model with a decoder of captions, as cappa_b16; found "
            f"{type(embedder.model.architecture).__name__}"
        )
    embedder.require_text()
