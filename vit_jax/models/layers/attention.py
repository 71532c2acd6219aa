"""Multi-head self-attention."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import Initializer, metadata, weights
from vit_jax.models.layers.rotary import Angles, rotate
from vit_jax.models.ops.attention import attention, self_attention
from vit_jax.models.ops.linear import linear

Transform = Callable[[jax.Array], jax.Array]
# Which of queries, keys and values have a bias: all (ViT), not the keys (DINOv3), none (AIMv2).
QKV_BIASES = ("qkv", "qv", "none")


def heads_projection(
    width: int,
    num_heads: int,
    *,
    parts: int | None = None,
    out_width: int | None = None,
    use_bias: bool = True,
    init: Initializer,
    dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.LinearGeneral:
    """Builds a projection of tokens to heads, such as the queries.

    Args:
        width: number of features D.
        num_heads: number of heads H; divides D.
        parts: number of fused projections, 3 for queries, keys and values; None for one.
        out_width: number of features of all heads; by default D.
        use_bias: whether there is a bias.
        init: initializer of the kernel (D, [parts,] H, D / H).
        dtype: compute type.
        rngs: source of the parameters' keys.
    """
    fused = () if parts is None else (parts,)
    axes = ("heads", "head_dim") if parts is None else ("qkv", "heads", "head_dim")
    return nnx.LinearGeneral(
        width,
        (*fused, num_heads, (out_width or width) // num_heads),
        use_bias=use_bias,
        kernel_init=init,
        kernel_metadata=metadata("embed", *axes),
        bias_metadata=metadata(*axes, decay=False),
        dtype=dtype,
        rngs=rngs,
    )


def output_projection(
    width: int,
    num_heads: int,
    *,
    out_width: int | None = None,
    use_bias: bool = True,
    init: Initializer,
    dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.LinearGeneral:
    """Builds the projection of heads back to tokens.

    Args:
        width: number of features of all heads D.
        num_heads: number of heads H; divides D.
        out_width: number of output features; by default D.
        use_bias: whether there is a bias.
        init: initializer of the kernel (H, D / H, out_width).
        dtype: compute type.
        rngs: source of the parameters' keys.
    """
    return nnx.LinearGeneral(
        (num_heads, width // num_heads),
        out_width or width,
        axis=(-2, -1),
        use_bias=use_bias,
        kernel_init=init,
        kernel_metadata=metadata("heads", "head_dim", "embed"),
        bias_metadata=metadata("embed", decay=False),
        dtype=dtype,
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Multi-head self-attention with a fused projection (Vaswani et al. 2017, section 3.2.2)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        causal: bool,
        qkv_init: Initializer,
        out_init: Initializer,
        qkv_bias: str = "qkv",
        out_bias: bool = True,
        qk_norm_epsilon: float | None = None,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            width: number of features D.
            num_heads: number of heads H; divides D.
            causal: whether a token attends only to those before it and to itself.
            qkv_init: initializer of the fused projection (D, 3, H, D / H).
            out_init: initializer of the output projection (H, D / H, D).
            qkv_bias: which of queries, keys and values have a bias, see `QKV_BIASES`.
            out_bias: whether the output projection has a bias.
            qk_norm_epsilon: epsilon of the LayerNorm of queries and keys, per head (Dehghani et al.
                2023, section 2); None for no norm.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.causal, self.qkv_bias = causal, qkv_bias
        self.qk_norm = qk_norm_epsilon is not None
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.qkv = heads_projection(
            width, num_heads, parts=3, use_bias=qkv_bias == "qkv", init=qkv_init, **execution
        )
        if qkv_bias == "qv":
            zeros = jnp.zeros((2, num_heads, width // num_heads))
            self.qv_bias = nnx.Param(zeros, **metadata("qkv", "heads", "head_dim", decay=False))
        self.out = output_projection(
            width, num_heads, use_bias=out_bias, init=out_init, **execution
        )
        if qk_norm_epsilon is not None:
            norm: dict[str, Any] = {"epsilon": qk_norm_epsilon, "axis": "head_dim", **execution}
            self.q_norm = layer_norm(width // num_heads, **norm)
            self.k_norm = layer_norm(width // num_heads, **norm)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        angles: Angles | None = None,
        mask: Bool[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Attends within each example.

        Args:
            x: tokens (B, N, D).
            angles: by which queries and keys are rotated (RoPE), see `layers.rotary`; or None.
            mask: False for padding, to which no token attends; None for no padding.
        """
        return self_attention(
            x,
            self.qkv_weights(x.dtype),
            weights(self.out, x.dtype),
            causal=self.causal,
            mask=mask,
            transform=self._transforms(angles),
        )

    def qkv_weights(
        self, dtype: Any
    ) -> tuple[Float[Array, "width 3 heads head_dim"], Float[Array, "3 heads head_dim"]]:
        """Returns kernel and bias of the fused projection; zeros where there is no bias.

        Args:
            dtype: compute type.
        """
        kernel, bias = weights(self.qkv, dtype)
        if self.qkv_bias == "qv":
            queries, values = self.qv_bias[...].astype(dtype)
            bias = jnp.stack([queries, jnp.zeros_like(queries), values])
        return kernel, bias

    def maps(
        self,
        x: Float[Array, "batch length width"],
        angles: Angles | None = None,
        mask: Bool[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch heads length length"]:
        """Computes the attention weights, to be shown: (B, H, N queries, N keys), float32.

        Args:
            x: tokens (B, N, D).
            angles: see `__call__`.
            mask: see `__call__`.
        """
        qkv = linear(x, self.qkv_weights(x.dtype))
        queries, keys, _ = jnp.moveaxis(qkv, 2, 0)  # (B, N, H, D / H) each
        if transforms := self._transforms(angles):
            queries, keys = transforms[0](queries), transforms[1](keys)
        logits = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
        logits *= queries.shape[-1] ** -0.5
        if self.causal:
            logits = jnp.where(jnp.tri(x.shape[1], dtype=bool), logits, -jnp.inf)
        if mask is not None:
            logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
        return jax.nn.softmax(logits, axis=-1)

    def _transforms(self, angles: jax.Array | None) -> tuple[Transform, Transform] | None:
        """Functions of the queries and of the keys (B, N, H, D / H): their norms and rotation."""
        if angles is None:
            return (self.q_norm, self.k_norm) if self.qk_norm else None
        if not self.qk_norm:
            return (lambda q: rotate(q, angles), lambda k: rotate(k, angles))
        return (
            lambda q: rotate(self.q_norm(q), angles),
            lambda k: rotate(self.k_norm(k), angles),
        )


class KeyValues(NamedTuple):
    """Keys and values that are kept because attention reads them again.

    Attributes:
        keys: (B, M, H, K); those of a stack of layers have a leading axis, (layers, B, M, H, K).
        values: array of the shape of `keys`.
    """

    keys: jax.Array
    values: jax.Array

    def write(self, new: "KeyValues", at: Int[Array, ""]) -> "KeyValues":
        """Replaces those of a part of the tokens.

        Args:
            new: keys and values of N tokens (B, N, H, K).
            at: index of the first of them.
        """
        pairs = zip(self, new, strict=True)
        return KeyValues(
            *(jax.lax.dynamic_update_slice_in_dim(old, x, at, axis=1) for old, x in pairs)
        )


class CrossAttention(nnx.Module):
    """Multi-head attention of queries to keys and values that may differ in their inputs."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        inner_width: int | None = None,
        key_width: int | None = None,
        use_bias: bool = True,
        init: Initializer,
        out_init: Initializer | None = None,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            width: number of features D.
            num_heads: number of heads H; divides `inner_width`.
            inner_width: number of features of all heads; by default D.
            key_width: number of features of keys and values E; by default D.
            use_bias: whether the projections have biases.
            init: initializer of all projections.
            out_init: initializer of the output projection, where it is another one.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        inner, key_width = inner_width or width, key_width or width
        execution: dict[str, Any] = {"use_bias": use_bias, "dtype": dtype, "rngs": rngs}
        heads = {"out_width": inner, "init": init, **execution}
        self.query = heads_projection(width, num_heads, **heads)
        self.key = heads_projection(key_width, num_heads, **heads)
        self.value = heads_projection(key_width, num_heads, **heads)
        self.out = output_projection(
            inner, num_heads, out_width=width, init=out_init or init, **execution
        )

    def __call__(
        self,
        queries: Float[Array, "batch queries width"],
        keys: Float[Array, "batch keys key_width"],
        values: Float[Array, "batch keys key_width"],
        mask: Bool[Array, "_batch _heads _queries keys"] | None = None,
    ) -> Float[Array, "batch queries width"]:
        """Attends within each example.

        Args:
            queries: (B, N, D).
            keys: (B, M, E).
            values: (B, M, E).
            mask: True where a query attends to a key, (B or 1, 1 or H, 1 or N, M); None for
                everywhere.
        """
        heads = self.query(queries), self.key(keys), self.value(values)
        return self.out(attention(*heads, mask=mask))

    def key_values(self, x: Float[Array, "batch keys key_width"]) -> KeyValues:
        """Computes the keys and values of inputs (B, M, E), to be kept for `attend`."""
        return KeyValues(self.key(x), self.value(x))

    def attend(
        self,
        queries: Float[Array, "batch queries width"],
        kept: KeyValues,
        mask: Bool[Array, "_batch _heads _queries keys"] | None = None,
    ) -> Float[Array, "batch queries width"]:
        """Attends to keys and values that were computed before.

        Args:
            queries: (B, N, D).
            kept: keys and values (B, M, H, K).
            mask: see `__call__`.
        """
        return self.out(attention(self.query(queries), *kept, mask=mask))
