"""Zero-shot classification by the likelihood of captions (Tschannen et al. 2023, section 4.2)."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.evaluators import metrics
from vit_jax.evaluators.captioning import CHUNK_TOKENS, check_captioner
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.zeroshot import ZeroShot
from vit_jax.models.definition import Params
from vit_jax.objectives.token_loss import caption_sums


class CaptionZeroShot(ZeroShot):
    """Accuracy of assigning each image to the class whose caption is most likely.

    The likelihood of a class is the mean of those of its captions in all templates. Each image is
    decoded with each caption: the cost is that of images x classes x templates captions.

    Metrics as those of `zeroshot`; `ece` is of the scores as probabilities, relative to their sum
    over the classes.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(ZeroShot.Config):
        """Keys of the evaluator, besides those of `zeroshot`.

        Attributes:
            prior: exponent of the prior of a class by which its likelihood is divided: the mean
                likelihood of its captions over all images of the source (Lin et al. 2024,
                "Revisiting the Role of Language Priors in Vision-Language Models"). With 0 short
                and frequent captions are preferred; with 1 the score is the mutual information.
        """

        prior: float = 0.0

    _config: Config

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source.

        Args:
            config: keys of the evaluator.
            embedder: gives model, image preprocessing, tokenizer and devices.

        Raises:
            UserError: a model without a decoder of captions, or see `ZeroShot`.
        """
        super().__init__(config, embedder)
        texts = [t.format(name) for name in self.class_names for t in self._templates]
        self._tokens = embedder.tokenize(texts)

    def _check_model(self, embedder: Embedder) -> None:
        check_captioner(embedder)

    def _scores(
        self, params: Params
    ) -> tuple[Float[np.ndarray, "examples classes"], Float[np.ndarray, "examples classes"]]:
        digest = hashlib.sha256(self._tokens.tobytes()).hexdigest()[:16]
        found = self._embedder.apply(
            f"likelihoods of {digest}", self._likelihoods, params, self._source
        )
        by_template = found.reshape(len(found), len(self.class_names), -1).astype(np.float64)
        scores = np.logaddexp.reduce(by_template, axis=2) - np.log(by_template.shape[2])
        prior = np.logaddexp.reduce(scores, axis=0, keepdims=True) - np.log(len(scores))
        scores = scores - self._config.prior * prior
        return scores, metrics.softmax(scores)

    def _likelihoods(
        self, model: Any, images: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch captions"]:
        """Log-likelihoods of all captions for each image."""
        memory = model.encode_memory(images)

        def of_caption(tokens: jax.Array) -> jax.Array:
            rows = jnp.broadcast_to(tokens, (len(images), len(tokens)))
            states = model.caption_states(rows, memory)
            return -caption_sums(model, rows, states, CHUNK_TOKENS)[:, 0]

        return jax.lax.map(of_caption, jnp.asarray(self._tokens)).T
