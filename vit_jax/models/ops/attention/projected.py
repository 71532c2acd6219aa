"""Self-attention with its projections.

Shapes: batch B, tokens N, width D, heads H of K = D / H features.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vit_jax.errors import lookup
from vit_jax.models.ops.attention.dot_product import attention, choose
from vit_jax.models.ops.attention.plain import Masks
from vit_jax.models.ops.attention.whole_sequence import Options, whole_sequence_attention
from vit_jax.models.ops.linear import Weights, linear
from vit_jax.models.partitioning import constrain, interpret_kernels, laid_out, platform

Transform = Callable[[jax.Array], jax.Array]


def self_attention(
    x: Float[Array, "batch length width"],
    qkv: Weights,
    out: Weights,
    *,
    causal: bool = False,
    mask: Bool[Array, "batch length"] | None = None,
    bias: Float[Array, "_examples _heads length length"] | None = None,
    transform: tuple[Transform, Transform] | None = None,
    implementation: str | None = None,
) -> Float[Array, "batch length width"]:
    """Projects tokens to queries, keys and values, attends, and projects back.

    Args:
        x: tokens (B, N, D).
        qkv: kernel (D, 3, H, K) and bias (3, H, K) of the fused projection.
        out: kernel (H, K, D) and bias (D,) of the output projection.
        causal: whether a token attends only to those before it and to itself.
        mask: False for padding, to which no token attends, (B, N); None for no padding.
        bias: added to the scaled scores, (P, H or 1, N, N), see `attention`.
        transform: functions of the queries and of the keys (B, N, H, K), such as QK-norm and
            rotation by position; None for none.
        implementation: key of `SELF_ATTENTION`; by default "packed" where attention is the kernel
            for whole sequences, "flat" on CPUs, "split" elsewhere.

    Returns:
        (B, N, D), dtype of `x`.
    """
    if implementation is None:
        shape = (*x.shape[:2], *qkv[0].shape[2:])
        masked = mask is not None or bias is not None
        packed = choose(shape, x.shape[1], x.dtype, masked=masked) == "pallas"
        implementation = "packed" if packed else "flat" if platform() == "cpu" else "split"
    function = lookup(SELF_ATTENTION, implementation, "implementation of self-attention")
    keys = None if mask is None else mask[:, None, None]
    return function(_Layer(qkv, out, Masks(causal, keys, bias), transform), x)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Arguments of `self_attention`, except the tokens; each method is an implementation."""

    qkv: Weights
    out: Weights
    masks: Masks
    transform: tuple[Transform, Transform] | None

    def flat(self, x: jax.Array) -> jax.Array:
        """Fused projection of (B N, D). XLA:CPU contracts (B, N, D) slowly, see `ops.mlp`."""
        batch, length, width = x.shape
        heads = linear(x.reshape(-1, width), self.qkv)
        heads = heads.reshape(batch, length, *heads.shape[1:])
        heads = constrain(heads, "batch", "length", None, "heads", None)
        x = self._attend(jnp.moveaxis(heads, 2, 0))
        x = linear(x.reshape(batch * length, *x.shape[2:]), self.out, 2)
        return x.reshape(batch, length, width)

    def split(self, x: jax.Array) -> jax.Array:
        """Three projections. The gradient of a fused result would be stacked, that is copied."""
        kernel, offset = self.qkv

        def project(i: int) -> jax.Array:
            heads = jnp.einsum("bnd,dhk->bnhk", x, kernel[:, i]) + offset[i]
            # Tokens are the minor dimension in the gradients' matmuls; this layout saves a copy.
            return laid_out(constrain(heads, "batch", "length", "heads", None), (0, 2, 3, 1))

        attended = self._attend([project(i) for i in range(3)])
        kernel, offset = self.out
        return jnp.einsum("bnhk,hkd->bnd", attended, kernel) + offset

    def packed(self, x: jax.Array) -> jax.Array:
        """Heads side by side in the last dimension: the layout of matmuls and of the kernel."""
        kernel, offset = self.qkv
        width, _, num_heads, head_dim = kernel.shape
        offset = offset.reshape(3, num_heads * head_dim)

        def project(i: int) -> jax.Array:
            features = jnp.einsum("bnd,dm->bnm", x, kernel[:, i].reshape(width, -1))
            return constrain(features, "batch", "length", "heads")

        q, k, v = (project(i) for i in range(3))
        projection_bias: jax.Array | None = offset
        if (
            self.transform is not None
        ):  # a function follows the bias, which the kernel cannot add then
            shape = (*x.shape[:2], num_heads, head_dim)
            q, k = (
                function((y + b).reshape(shape)).reshape(y.shape)
                for function, y, b in zip(self.transform, (q, k), offset[:2], strict=True)
            )
            v, projection_bias = v + offset[2], None
        masks = self.masks
        options = Options(head_dim, masks.causal, masks.bias is not None, interpret_kernels())
        x = whole_sequence_attention(
            q, k, v, options, projection_bias=projection_bias, bias=masks.additive()
        )
        kernel, offset = self.out
        return jnp.einsum("bnm,md->bnd", x, kernel.reshape(-1, kernel.shape[-1])) + offset

    def reference(self, x: jax.Array) -> jax.Array:
        """The definition, without constraints."""
        kernel, offset = self.qkv
        heads = jnp.moveaxis(jnp.einsum("bnd,dchk->bnchk", x, kernel) + offset, 2, 0)
        attended = self._attend(heads, "reference")
        kernel, offset = self.out
        return jnp.einsum("bnhk,hkd->bnd", attended, kernel) + offset

    def _attend(
        self, qkv: jax.Array | list[jax.Array], implementation: str | None = None
    ) -> jax.Array:
        """Attention of queries, keys and values (B, N, H, K), with their functions."""
        q, k, v = qkv
        if self.transform is not None:
            q, k = self.transform[0](q), self.transform[1](k)
        masks = self.masks
        return attention(
            q,
            k,
            v,
            causal=masks.causal,
            mask=masks.mask,
            bias=masks.bias,
            implementation=implementation,
        )


SELF_ATTENTION = {
    "reference": _Layer.reference,
    "flat": _Layer.flat,
    "split": _Layer.split,
    "packed": _Layer.packed,
}
