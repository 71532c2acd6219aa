"""Attention in operations of JAX, for any platform and mask."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Instead of -inf: a query without any key then averages the values, and is not NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks and bias of the scores; fields as the arguments of `dot_product.attention`."""

    causal: bool = False
    mask: jax.Array | None = None
    bias: jax.Array | None = None

    def repeated(self, examples: int = 1) -> tuple[jax.Array | None, jax.Array | None, int]:
        """Repeats mask and bias to the same number of examples, except those that all share.

        Args:
            examples: number of examples, at least. May be symbolic, as in an exported program.

        Returns:
            Mask, bias, and the number of examples: 1 where all share both.
        """
        given = [x for x in (self.mask, self.bias) if x is not None]
        examples = max([examples, *(x.shape[0] for x in given)])

        def repeat(x: jax.Array | None) -> jax.Array | None:
            if x is None or x.shape[0] in (1, examples):
                return x
            return jnp.tile(x, (examples // x.shape[0], 1, 1, 1))

        return repeat(self.mask), repeat(self.bias), examples

    def additive(self) -> jax.Array | None:
        """Combines mask and bias to one term, float32, that is added to the scores."""
        mask, bias, _ = self.repeated()
        if mask is None:
            return bias
        masked = jnp.where(mask, 0.0, MASKED)
        return masked if bias is None else masked + bias


def reference(query: jax.Array, key: jax.Array, value: jax.Array, masks: Masks) -> jax.Array:
    """The definition, in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    scores = jnp.einsum("bnhk,bmhk->bhnm", q, k) / q.shape[-1] ** 0.5
    scores = _masked(scores, masks)
    return jnp.einsum("bhnm,bmhk->bnhk", jax.nn.softmax(scores), v).astype(query.dtype)


def xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    masks: Masks,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> jax.Array:
    """JAX's own, for as many examples at a time as have their own masks and biases."""
    mask, bias, examples = masks.repeated()

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q, k, v, bias=bias, mask=mask, is_causal=masks.causal, implementation=implementation
        )

    if examples in (1, len(query)):
        return attend(query, key, value)
    repeats = [x.reshape(-1, examples, *x.shape[1:]) for x in (query, key, value)]
    return jax.vmap(attend)(*repeats).reshape(query.shape)


def einsum(query: jax.Array, key: jax.Array, value: jax.Array, masks: Masks) -> jax.Array:
    """Scores in the compute type, see `softmax`."""
    scores = jnp.einsum("bnhk,bmhk->bhnm", query * query.shape[-1] ** -0.5, key)
    return jnp.einsum("bhnm,bmhk->bnhk", softmax(_masked(scores, masks)), value)


def softmax(scores: Float[Array, "... keys"]) -> Float[Array, "... keys"]:
    """Softmax over the last axis with float32 sums, stored in the dtype of the scores.

    `jax.nn.dot_product_attention` has a TPU write float32 scores to memory. Here scores stay in the
    compute type, with the largest subtracted, which rounds them no more than the matmul did.

    Args:
        scores: (..., M).
    """
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    powers = jnp.exp((scores - largest).astype(jnp.float32))
    return (powers / jnp.sum(powers, axis=-1, keepdims=True)).astype(scores.dtype)


def _masked(scores: jax.Array, masks: Masks) -> jax.Array:
    """Adds the bias and applies the masks to scores (B, H, N, M)."""
    mask, bias, _ = masks.repeated(scores.shape[0])
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    lowest = jnp.asarray(0.7 * jnp.finfo(scores.dtype).min, scores.dtype)
    if mask is not None:
        scores = jnp.where(mask, scores, lowest)
    if masks.causal:
        scores = jnp.where(jnp.tri(scores.shape[-2], scores.shape[-1], dtype=bool), scores, lowest)
    return scores
