"""The MLP of a transformer block: linear, activation, linear; gated or not."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from vit_jax.errors import lookup
from vit_jax.models.ops.linear import Weights, linear
from vit_jax.models.partitioning import constrain, platform

Activation = Callable[[jax.Array], jax.Array]


def mlp(
    x: Float[Array, "*batch width"],
    fc1: Weights,
    fc2: Weights,
    activation: Activation,
    *,
    gate: Weights | None = None,
    implementation: str | None = None,
) -> Float[Array, "*batch out_width"]:
    """Computes fc2(activation(fc1(x))), or fc2(activation(gate(x)) * fc1(x)) with a gate.

    Args:
        x: (..., D), with the batch first.
        fc1: kernel (D, M) and bias (M,).
        fc2: kernel (M, E) and bias (E,); E is D in a transformer.
        activation: elementwise function.
        gate: kernel (D, M) and bias (M,) of the gate (Shazeer 2020, "GLU Variants Improve
            Transformer", section 2), or None.
        implementation: key of `MLP`; by default "flat" on CPUs, "batched" elsewhere.

    Returns:
        (..., E), dtype of `x`.
    """
    implementation = implementation or ("flat" if platform() == "cpu" else "batched")
    compute = lookup(MLP, implementation, "implementation of the MLP")
    return compute(x, fc1, gate, fc2, activation)


def _reference(
    x: jax.Array, fc1: Weights, gate: Weights | None, fc2: Weights, activation: Activation
) -> jax.Array:
    """The definition, without constraints."""
    hidden = x @ fc1[0] + fc1[1]
    hidden = activation(hidden) if gate is None else activation(x @ gate[0] + gate[1]) * hidden
    return hidden @ fc2[0] + fc2[1]


def _flat(
    x: jax.Array, fc1: Weights, gate: Weights | None, fc2: Weights, activation: Activation
) -> jax.Array:
    """The tokens of all examples as one dimension.

    XLA:CPU contracts (B, N, D) slowly for the gradient of a kernel and recomputes the activation
    within the contraction, which doubles the time of an MLP. On TPUs the reshape costs a third of
    the time of a ViT-B block without attention.
    """
    flat = x.reshape(-1, x.shape[-1])
    return _batched(flat, fc1, gate, fc2, activation).reshape(*x.shape[:-1], -1)


def _batched(
    x: jax.Array, fc1: Weights, gate: Weights | None, fc2: Weights, activation: Activation
) -> jax.Array:
    """The dimensions of the tokens as they are."""
    axes = ("batch", *(None,) * (x.ndim - 2), "mlp")
    hidden = constrain(linear(x, fc1), *axes)
    if gate is None:
        return linear(activation(hidden), fc2)
    return linear(activation(constrain(linear(x, gate), *axes)) * hidden, fc2)


MLP = {"reference": _reference, "flat": _flat, "batched": _batched}
