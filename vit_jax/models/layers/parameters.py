"""Metadata of parameters: sharding axes, weight decay, layers above them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError

# Takes a key, a shape and a dtype, as those of `jax.nn.initializers`.
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
# torch's default for linear layers and convolutions: uniform in +-1 / sqrt(inputs).
TORCH_INIT: Initializer = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Path of a part of a model -> number of layers between it and the output. A stack of layers has one
# number per layer.
LayersAbove = dict[str, int | Sequence[int]]


def metadata(*axes: str, decay: bool = True) -> dict[str, Any]:
    """Builds the metadata of a parameter.

    Args:
        *axes: logical name of each dimension, which the sharding rules map to mesh axes.
        decay: whether weight decay applies.

    Returns:
        Keyword arguments of `nnx.Param`.
    """
    return {"axes": axes, "decay": decay}


def nested(name: str, module: Any, above: int = 0) -> LayersAbove:
    """Prefixes the paths of a submodule's `layers_above`.

    Args:
        name: attribute name of the submodule.
        module: submodule with a method `layers_above`.
        above: layers between the submodule and the output.
    """
    return {
        f"{name}/{path}": count + above
        if isinstance(count, int)
        else [each + above for each in count]
        for path, count in module.layers_above().items()
    }


def check_layers(layers: Sequence[int], count: int, noun: str = "blocks") -> None:
    """Checks the indices of blocks or stages.

    Args:
        layers: indices; negative ones count from the last.
        count: number of blocks or stages.
        noun: name of what is counted, for the message.

    Raises:
        UserError: an index out of range.
    """
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(f"layer {layer} does not exist: this tower has {count} {noun}")


def weights(
    layer: nnx.Linear | nnx.LinearGeneral | nnx.Conv, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns the kernel and the bias of a linear layer, or of a convolution, in the compute type.

    Args:
        layer: layer; without a bias, zeros are returned, whose addition XLA leaves out.
        dtype: compute type.
    """
    kernel = layer.kernel[...].astype(dtype)
    if layer.bias is None:
        return kernel, jnp.zeros(layer.out_features, dtype)
    return kernel, layer.bias[...].astype(dtype)
