"""Multi-head self-attention."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import Initializer, metadata, weights
from vit_jax.models.partitioning import constrain, laid_out, platform


def attention_projections(
    width: int,
    num_heads: int,
    *,
    qkv_init: Initializer,
    out_init: Initializer,
    dtype: Any,
    rngs: nnx.Rngs,
) -> tuple[nnx.LinearGeneral, nnx.LinearGeneral]:
    """The fused projection (D, 3, H, hd) into queries, keys and values, and the one back."""
    head_dim = width // num_heads
    qkv = nnx.LinearGeneral(
        width,
        (3, num_heads, head_dim),
        kernel_init=qkv_init,
        kernel_metadata=metadata("embed", "qkv", "heads", "head_dim"),
        bias_metadata=metadata("qkv", "heads", "head_dim", decay=False),
        dtype=dtype,
        rngs=rngs,
    )
    out = nnx.LinearGeneral(
        (num_heads, head_dim),
        width,
        axis=(-2, -1),
        kernel_init=out_init,
        kernel_metadata=metadata("heads", "head_dim", "embed"),
        bias_metadata=metadata("embed", decay=False),
        dtype=dtype,
        rngs=rngs,
    )
    return qkv, out


class Attention(nnx.Module):
    """Multi-head self-attention with one fused projection (Vaswani et al. 2017, section 3.2)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        causal: bool,
        qkv_init: Initializer,
        out_init: Initializer,
        qk_norm_epsilon: float | None = None,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
            width: D.
            num_heads: divides D.
            causal: whether a token sees only those before it.
            qkv_init: of the fused projection (D, 3, H, hd).
            out_init: of the output projection (H, hd, D).
            qk_norm_epsilon: LayerNorm of queries and keys, each head's features (Dehghani et al.
                2023, section 2); None for none.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.causal = causal
        self.qk_norm = qk_norm_epsilon is not None
        self.qkv, self.out = attention_projections(
            width, num_heads, qkv_init=qkv_init, out_init=out_init, dtype=dtype, rngs=rngs
        )
        if qk_norm_epsilon is not None:
            head_dim = width // num_heads
            norm = {"epsilon": qk_norm_epsilon, "axis": "head_dim", "dtype": dtype, "rngs": rngs}
            self.q_norm = layer_norm(head_dim, **norm)
            self.k_norm = layer_norm(head_dim, **norm)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._tokens_flat(x) if platform() == "cpu" else self._three_projections(x)

    def _tokens_flat(self, x: jax.Array) -> jax.Array:
        """For CPUs, see `Mlp`."""
        batch, length, width = x.shape
        qkv = self.qkv(x.reshape(-1, width)).reshape(batch, length, *self.qkv.out_features)
        qkv = constrain(qkv, "batch", "length", None, "heads", None)
        q, k, v = jnp.moveaxis(qkv, 2, 0)  # (B, N, H, hd) each
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        x = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(x.reshape(batch * length, *x.shape[2:])).reshape(batch, length, width)

    def _three_projections(self, x: jax.Array) -> jax.Array:
        """For accelerators: the gradient of one fused result would be stacked, that is copied."""
        kernel, bias = weights(self.qkv, x.dtype)

        def project(i: int) -> jax.Array:
            heads = jnp.einsum("bnd,dhk->bnhk", x, kernel[:, i]) + bias[i]
            # Tokens innermost, as the gradients want them: otherwise they are copied there.
            return laid_out(constrain(heads, "batch", "length", "heads", None), (0, 2, 3, 1))

        q, k, v = (project(i) for i in range(3))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        scores = jnp.einsum("bnhk,bmhk->bhnm", q * q.shape[-1] ** -0.5, k)
        if self.causal:
            scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
        x = jnp.einsum("bhnm,bmhk->bnhk", softmax(scores), v)
        kernel, bias = weights(self.out, x.dtype)
        return jnp.einsum("bnhk,hkd->bnd", x, kernel) + bias


def softmax(scores: jax.Array) -> jax.Array:
    """Of the last axis, with float32 sums.

    Not `jax.nn.dot_product_attention`, which has a TPU write scores out in float32. Here they stay
    in the compute type, less the largest, which rounds them no more than the matmul did.
    """
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    powers = jnp.exp((scores - largest).astype(jnp.float32))
    return (powers / jnp.sum(powers, axis=-1, keepdims=True)).astype(scores.dtype)
