"""The MLP of a transformer block: linear, activation, linear."""

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
    implementation: str | None = None,
) -> Float[Array, "*batch out_width"]:
    """Computes fc2(activation(fc1(x))).

    Args:
        x: (..., D), with the batch first.
        fc1: kernel (D, M) and bias (M,).
        fc2: kernel (M, E) and bias (E,); E is D in a transformer.
        activation: elementwise function.
        implementation: key of `MLP`; by default "flat" on CPUs, "batched" elsewhere.

    Returns:
        (..., E), dtype of `x`.
    """
    implementation = implementation or ("flat" if platform() == "cpu" else "batched")
    return lookup(MLP, implementation, "implementation of the MLP")(x, fc1, fc2, activation)


def _reference(x: jax.Array, fc1: Weights, fc2: Weights, activation: Activation) -> jax.Array:
    """The definition, without constraints."""
    return activation(x @ fc1[0] + fc1[1]) @ fc2[0] + fc2[1]


def _flat(x: jax.Array, fc1: Weights, fc2: Weights, activation: Activation) -> jax.Array:
    """The tokens of all examples as one dimension.

    XLA:CPU contracts (B, N, D) slowly for the gradient of a kernel and recomputes the activation
    within the contraction, which doubles the time of an MLP. On TPUs the reshape costs a third of
    the time of a ViT-B block without attention.
    """
    hidden = constrain(linear(x.reshape(-1, x.shape[-1]), fc1), "batch", "mlp")
    return linear(activation(hidden), fc2).reshape(*x.shape[:-1], -1)


def _batched(x: jax.Array, fc1: Weights, fc2: Weights, activation: Activation) -> jax.Array:
    """The dimensions of the tokens as they are."""
    hidden = constrain(linear(x, fc1), "batch", *(None,) * (x.ndim - 2), "mlp")
    return linear(activation(hidden), fc2)


MLP = {"reference": _reference, "flat": _flat, "batched": _batched}
