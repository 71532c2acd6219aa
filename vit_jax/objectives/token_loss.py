"""Cross-entropy of the tokens of captions, computed in parts.

The logits of all tokens, batch x length x vocabulary in float32, can take more memory than the rest
of the step: 64 tokens of 128 captions over 256,000 ids are 8.4 GB. Here those of a chunk of tokens
per device exist at a time; the backward pass computes them again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models import partitioning
from vit_jax.models.layers.caption_decoder import head_logits
from vit_jax.models.layers.parameters import weights


class TokenLosses(NamedTuple):
    """Values of each token.

    Attributes:
        losses: negative log-likelihood, float32 (B, T).
        correct: whether the token has the largest logit (B, T).
    """

    losses: Float[Array, "batch length"]
    correct: Bool[Array, "batch length"]


def token_losses(
    states: Float[Array, "batch length width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
    labels: Int[Array, "batch length"],
    *,
    chunk: int,
) -> TokenLosses:
    """Computes the negative log-likelihood of tokens.

    Args:
        states: features (B, T, D), see `CaptionDecoder`.
        kernel: kernel of the head (D, V), float32. Its gradient is summed over chunks in float32.
        bias: bias of the head (V,), float32.
        labels: ids (B, T).
        chunk: number of tokens per device whose logits exist at a time.
    """
    batch, length = labels.shape
    # Chunks are cut from the tokens of each device, so that devices exchange nothing.
    shards = partitioning.shards("batch")
    shards = shards if batch % shards == 0 else 1
    rows = batch * length // shards
    count = -(-rows // chunk)
    size = -(-rows // count)  # equal chunks

    def cut(x: jax.Array) -> jax.Array:
        x = partitioning.constrain(
            x.reshape(shards, rows, *x.shape[2:]), "batch", *[None] * (x.ndim - 1)
        )
        x = jnp.pad(x, ((0, 0), (0, count * size - rows), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(shards, count, size, *x.shape[2:]), 1, 0)

    def losses_of(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        features, wanted = part
        logits = head_logits(features, kernel, bias)  # (shards, size, V)
        # A sum instead of an index: its gradient is no scatter.
        own = jnp.sum(logits, axis=-1, where=jnp.arange(len(bias)) == wanted[..., None])
        return jax.nn.logsumexp(logits, axis=-1) - own, jnp.argmax(logits, axis=-1) == wanted

    found = jax.lax.map(jax.checkpoint(losses_of, prevent_cse=False), (cut(states), cut(labels)))

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(shards, -1)[:, :rows].reshape(batch, length)

    return TokenLosses(*map(join, found))


def caption_sums(
    model: Any,
    tokens: Int[Array, "batch length"],
    states: Float[Array, "batch length width"],
    chunk: int,
) -> Float[Array, "batch 3"]:
    """Sums over the tokens that a model predicts of each caption.

    Args:
        model: bound captioner, see "Other kinds of model" in models/README.md.
        tokens: ids (B, T), padded. Padding is not predicted.
        states: features from which each token is predicted (B, T, D), see `caption_states`.
        chunk: see `token_losses`.

    Returns:
        Sum of the negative log-likelihoods, number of tokens with the largest logit, and number of
        tokens, float32 (B, 3).
    """
    head = weights(model.decoder.head, jnp.float32)
    losses, correct = token_losses(states, *head, tokens, chunk=chunk)
    predicted = (tokens != model.decoder.config.pad_id) & (
        jnp.arange(tokens.shape[1]) >= model.num_given
    )
    values = (losses, correct, jnp.ones_like(losses))
    return jnp.stack([jnp.sum(x, axis=1, where=predicted) for x in values], axis=1)
