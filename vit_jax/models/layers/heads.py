"""Heads: linear classifiers, and MLPs that predict boxes."""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vit_jax.errors import lookup
from vit_jax.models.layers.mlp import ACTIVATIONS
from vit_jax.models.layers.parameters import Initializer, metadata

_LECUN = initializers.lecun_normal()


def classifier_head(
    width: int, num_classes: int, *, kernel_init: Initializer, rngs: nnx.Rngs
) -> nnx.Linear:
    """Builds a float32 linear layer from pooled features to logits.

    Args:
        width: number of features D.
        num_classes: number of logits.
        kernel_init: initializer of the kernel (D, num_classes).
        rngs: source of the parameters' keys.
    """
    return nnx.Linear(
        width,
        num_classes,
        kernel_init=kernel_init,
        kernel_metadata=metadata("embed", "classes"),
        bias_metadata=metadata("classes", decay=False),
        rngs=rngs,
    )


def logit(probability: float) -> float:
    """Returns the logarithm of the odds of a probability."""
    return math.log(probability / (1 - probability))


def linear_layer(
    inputs: int,
    outputs: int,
    axes: tuple[str, str],
    init: Initializer,
    dtype: Any,
    rngs: nnx.Rngs,
    *,
    init_bias: float = 0.0,
    decay: bool = True,
) -> nnx.Linear:
    """Builds a linear layer with a bias.

    Args:
        inputs: number of input features.
        outputs: number of output features.
        axes: logical names of both dimensions of the kernel.
        init: initializer of the kernel (inputs, outputs).
        dtype: compute type.
        rngs: source of the parameters' keys.
        init_bias: initial value of the bias.
        decay: whether weight decay applies to the kernel.
    """
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=init,
        bias_init=initializers.constant(init_bias),
        kernel_metadata=metadata(*axes, decay=decay),
        bias_metadata=metadata(axes[1], decay=False),
        dtype=dtype,
        rngs=rngs,
    )


class MlpHead(nnx.Module):
    """Three linear layers with an activation between them. The last one is float32."""

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        activation: str,
        init_output: float = 0.0,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the head; its outputs are initially constant (scenic, projects/owl_vit/layers.py).

        Args:
            width: number of input features and of hidden units D.
            outputs: number of outputs.
            activation: key of `layers.mlp.ACTIVATIONS`.
            init_output: initial value of all outputs.
            dtype: compute type of the first two layers.
            rngs: source of the parameters' keys.
        """
        self.activation = lookup(ACTIVATIONS, activation, "activation")
        self.fc1 = linear_layer(width, width, ("embed", "mlp"), _LECUN, dtype, rngs)
        self.fc2 = linear_layer(width, width, ("mlp", "embed"), _LECUN, dtype, rngs)
        self.fc3 = linear_layer(
            width,
            outputs,
            ("embed", "outputs"),
            initializers.zeros,
            jnp.float32,
            rngs,
            init_bias=init_output,
        )

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch outputs"]:
        """Computes the outputs, float32.

        Args:
            x: features (..., D).
        """
        return self.fc3(self.activation(self.fc2(self.activation(self.fc1(x)))))
