"""Image captioning (Tschannen et al. 2023, "Image Captioners Are Scalable Vision Learners Too")."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.objectives.base import (
    Batch,
    Context,
    Metrics,
    Objective,
    check_range,
    mean_over_examples,
)
from vit_jax.objectives.token_loss import caption_sums


class Captioning(Objective):
    """Cross-entropy of the tokens of captions, autoregressive or in parallel.

    The loss is the mean over examples of the mean over the tokens of each caption, the end of text
    included and padding excluded, as in the authors' code.

    Metrics: `token_accuracy`, with the same mean, the fraction of tokens with the largest logit.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective.

        Attributes:
            parallel_fraction: probability with which the tokens of an example are predicted in
                parallel, drawn anew for each example and step; 0 for Cap, 0.75 for CapPa (section
                3). Held-out losses are autoregressive.
            chunk_tokens: number of tokens per device whose logits exist at a time.
        """

        parallel_fraction: float = 0.75
        chunk_tokens: int = 1024

    fields = ("image", "tokens")

    def __init__(self, config: Config, context: Context):
        """Checks that the model has a decoder.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: a key that is not in its range, or a model without a decoder of captions.
        """
        super().__init__(config, context)
        check_range("parallel_fraction", config.parallel_fraction, 0, 1)
        check_range("chunk_tokens", config.chunk_tokens, 1)
        if not hasattr(context.module, "encode_memory"):
            raise UserError(
                "config.objective.name='captioning' predicts captions: it needs a model with a "
                f"decoder of captions, as cappa_b16; found {context.architecture_name}"
            )

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch of `image` and `tokens` (B, length)."""
        images, tokens = batch["image"], batch["tokens"]
        parallel, model_rng = draw_parallel(rng, self.config.parallel_fraction, len(tokens))
        arrays = (images, tokens, parallel)
        (sums,) = self.context.microbatches.run(self._caption, model, arrays, model_rng)
        means = sums[:, :2] / jnp.maximum(sums[:, 2:], 1)
        loss, accuracy = (mean_over_examples(x, batch.get("weight")) for x in means.T)
        return loss, {"token_accuracy": accuracy}

    def _caption(
        self,
        model: Any,
        images: jax.Array,
        tokens: jax.Array,
        parallel: jax.Array,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, ...]:
        """Sums over the tokens of each example, (B, 3), see `caption_sums`."""
        memory = model.encode_memory(self.context.spec.inputs.normalize(images), rng=rng)
        states = model.caption_states(tokens, memory, parallel)
        return (caption_sums(model, tokens, states, self.config.chunk_tokens),)


def draw_parallel(
    rng: Key[Array, ""] | None, fraction: float, batch: int
) -> tuple[Bool[Array, " batch"], Key[Array, ""] | None]:
    """Draws the examples that are predicted in parallel.

    They are drawn for the whole batch, so that they do not depend on the microbatches.

    Args:
        rng: PRNG key; None for evaluation, where none is.
        fraction: probability of an example.
        batch: number of examples B.

    Returns:
        Whether each example is predicted in parallel (B,), and the key for the model.
    """
    if rng is None:
        return jnp.zeros(batch, bool), None
    own, model_rng = jax.random.split(rng)
    return jax.random.bernoulli(own, fraction, (batch,)), model_rng
