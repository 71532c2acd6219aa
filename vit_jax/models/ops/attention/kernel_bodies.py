"""Bodies of the TPU kernels for attention over whole sequences, see `whole_sequence`.

A program holds a few examples and heads: queries (examples, N, L), keys and values
(examples, M, L), with L = heads * head_dim lanes. The features of a head are not sliced out of
these lanes. Instead the lanes of other heads are set to zero in one operand of each matmul, and the
results of the heads are added. So nothing is moved between lanes, and heads of any width work.

Scores are kept transposed, (M, N). Then the sums of the softmax run along sublanes, where they are
plain additions of registers, and only one of the five matmuls of the backward pass has a transposed
operand.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from vit_jax.models.ops.attention.plain import MASKED
from vit_jax.models.ops.tiles import LANES, padded

_NN, _NT, _TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))  # contracted axes; T for transposed
Accumulator = dict[int, jax.Array]  # first lane -> float32 (length, up to LANES)


@dataclasses.dataclass(frozen=True)
class Body:
    """Constants of a kernel.

    Attributes:
        head_dim: number of features of a head K.
        causal: whether a query attends only to the keys up to its own index.
        projection_bias: whether biases are added to queries, keys and values.
        bias_shape: examples and heads of the additive bias in a block, each 1 where all share it;
            None for no bias.
    """

    head_dim: int
    causal: bool
    projection_bias: bool
    bias_shape: tuple[int, int] | None

    def forward(self, *refs: Any) -> None:
        """Computes the outputs of a block.

        Args:
            *refs: queries, keys, values; their biases (1, L) float32 if there are any; the additive
                bias (examples, heads, M, N or 1) float32 if there is one; the outputs.
        """
        *inputs, out_ref = refs
        for i in range(out_ref.shape[0]):
            q, k, v = self._operands(inputs, i)
            out: Accumulator = {}
            for head, lanes in self._heads(q.shape[-1]):
                query = self._only(q[:, lanes], head, lanes)
                p = self._probabilities(query, k[:, lanes], inputs, i, head)
                value = self._only(v[:, lanes], head, lanes)
                _add(out, lanes, _dot(p.astype(v.dtype), value, _TN))
            _write(out, out_ref, i)

    def backward(self, *refs: Any, bias_gradient: bool) -> None:
        """Computes the gradients of a block; the scores are computed again.

        Gradients of biases are sums over the examples. Consecutive programs add to the same block.

        Args:
            *refs: the inputs of `forward`; the gradient of its outputs; the gradients of queries,
                keys and values; those of their biases (1, L) float32; that of the additive bias.
            bias_gradient: whether the gradient of the additive bias is computed.
        """
        count = 3 + 3 * self.projection_bias + (self.bias_shape is not None)
        inputs, (dout_ref, *outputs) = refs[:count], refs[count:]
        sums = outputs[3 : 3 + 3 * self.projection_bias]
        dbias_ref = outputs[-1] if bias_gradient else None
        self._start_sums(sums, dbias_ref)
        for i in range(dout_ref.shape[0]):
            q, k, v = self._operands(inputs, i)
            dq: Accumulator = {}
            dk: Accumulator = {}
            dv: Accumulator = {}
            for head, lanes in self._heads(q.shape[-1]):
                query = self._only(q[:, lanes], head, lanes)
                key = self._only(k[:, lanes], head, lanes)
                dout = self._only(dout_ref[i, :, lanes], head, lanes)
                p = self._probabilities(query, key, inputs, i, head)
                _add(dv, lanes, _dot(p.astype(dout.dtype), dout, _NN))
                dp = _dot(v[:, lanes], dout, _NT)
                ds = p * (dp - jnp.sum(p * dp, axis=0, keepdims=True))
                if dbias_ref is not None:
                    dbias_ref[self._bias_index(i, head)] += ds
                ds = ds.astype(query.dtype)
                _add(dk, lanes, _dot(ds, query, _NN))
                _add(dq, lanes, _dot(ds, key, _TN) * self.head_dim**-0.5)
            for j, gradient in enumerate((dq, dk, dv)):
                _write(gradient, outputs[j], i)
                if self.projection_bias:
                    _write_sums(gradient, sums[j])

    def _heads(self, lanes: int) -> list[tuple[int, slice]]:
        """Each head, and the smallest range of whole tiles that contains its lanes."""
        found = []
        for head in range(lanes // self.head_dim):
            first, last = head * self.head_dim, (head + 1) * self.head_dim
            end = min(padded(last, LANES), lanes)
            found.append((head, slice(first // LANES * LANES, end)))
        return found

    def _only(self, x: jax.Array, head: int, lanes: slice) -> jax.Array:
        """Sets the lanes of other heads to zero."""
        if x.shape[-1] == self.head_dim:
            return x
        first = head * self.head_dim - lanes.start
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        inside = (lane >= first) & (lane < first + self.head_dim)
        return jnp.where(inside, x, jnp.zeros_like(x))

    def _operands(self, inputs: Any, i: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Scaled queries, keys and values of one example, with their biases."""
        q, k, v = (ref[i] for ref in inputs[:3])
        scale = self.head_dim**-0.5
        if not self.projection_bias:
            return (q.astype(jnp.float32) * scale).astype(q.dtype), k, v
        q, k, v = (
            x.astype(jnp.float32) + ref[...] for x, ref in zip((q, k, v), inputs[3:6], strict=True)
        )
        dtype = inputs[0].dtype
        return (q * scale).astype(dtype), k.astype(dtype), v.astype(dtype)

    def _probabilities(
        self, q: jax.Array, k: jax.Array, inputs: Any, i: int, head: int
    ) -> jax.Array:
        """Softmax over the keys, float32 (M, N). Lanes of other heads are zero in `q`."""
        scores = _dot(k, q, _NT)
        if self.bias_shape is not None:
            scores += inputs[-1][self._bias_index(i, head)]
        if self.causal:
            key, query = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, a) for a in (0, 1))
            scores = jnp.where(key <= query, scores, MASKED)
        powers = jnp.exp(scores - jnp.max(scores, axis=0, keepdims=True))
        return powers * (1 / jnp.sum(powers, axis=0, keepdims=True))

    def _bias_index(self, example: int, head: int) -> tuple[int, int]:
        examples, heads = self.bias_shape or (1, 1)
        return example if examples > 1 else 0, head if heads > 1 else 0

    def _start_sums(self, sums: Any, dbias_ref: Any) -> None:
        """Sets sums over the examples to zero in the first program that adds to them."""
        first = pl.program_id(2) == 0

        @pl.when(first & (pl.program_id(1) == 0))
        def _() -> None:
            for ref in sums:
                ref[...] = jnp.zeros_like(ref)

        if dbias_ref is not None:

            @pl.when(first)
            def _() -> None:
                dbias_ref[...] = jnp.zeros_like(dbias_ref)


def _dot(a: jax.Array, b: jax.Array, axes: Any) -> jax.Array:
    """Matmul with float32 sums; float32 operands are not rounded to bfloat16."""
    exact = a.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        a, b, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _add(sums: Accumulator, lanes: slice, x: jax.Array) -> None:
    """Adds a result of one head to those of the heads before it, tile by tile."""
    for start in range(0, x.shape[-1], LANES):
        tile = x[:, start : start + LANES]
        first = lanes.start + start
        sums[first] = sums[first] + tile if first in sums else tile


def _write(sums: Accumulator, ref: Any, i: int) -> None:
    for first, tile in sums.items():
        ref[i, :, first : first + tile.shape[-1]] = tile.astype(ref.dtype)


def _write_sums(sums: Accumulator, ref: Any) -> None:
    for first, tile in sums.items():
        ref[:, first : first + tile.shape[-1]] += jnp.sum(tile, axis=0, keepdims=True)
