"""Metadata that parameters carry: sharding axes, weight decay, bounds, layers above."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from vit_jax.errors import UserError

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


# Path of a part of a model -> layers between it and the output, one each for a stack of layers.
LayersAbove = dict[str, int | range]


def metadata(*axes: str, decay: bool = True) -> dict[str, Any]:
    """Parameter metadata: the logical name of each dimension and whether weight decay applies."""
    return {"axes": axes, "decay": decay}


def nested(name: str, module: Any) -> LayersAbove:
    """What a part of a model says of its layers, under the model's names."""
    return {f"{name}/{path}": above for path, above in module.layers_above().items()}


def check_layers(layers: Sequence[int], count: int, what: str = "blocks") -> None:
    """Refuses numbers of blocks or stages that do not exist; negative ones count from the last."""
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(f"layer {layer} does not exist: this tower has {count} {what}")


def weights(layer: nnx.LinearGeneral, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of a layer that has both, in the compute type."""
    assert layer.bias is not None
    return layer.kernel[...].astype(dtype), layer.bias[...].astype(dtype)
