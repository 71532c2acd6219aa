"""Stacks of equal blocks, scanned or unrolled, and rematerialisation policies."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.models.layers.keys import parameter_rngs

Block = TypeVar("Block", bound=nnx.Module)
Activation = TypeVar("Activation")
Policy = Callable[..., bool] | None


def _saves_weight_matmuls(primitive: Any, *args: Any, **params: Any) -> bool:
    """Saves the results of matmuls with weights and of convolutions."""
    is_convolution = primitive.name == "conv_general_dilated"
    matmuls = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return is_convolution or matmuls(primitive, *args, **params)


# What a block saves for the backward pass, from most to least:
#   none  all residuals
#   mlp   all except those of the MLP's norm and activation, see `layers.mlp.mlp_branch`
#   dots  results of matmuls with weights; attention's (N, N) matrix is recomputed
#   full  the input of the block
REMAT_POLICIES: dict[str, Policy] = {
    "none": None,
    "mlp": None,
    "dots": _saves_weight_matmuls,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def stack_blocks(make_block: Callable[[nnx.Rngs], Block], keys: jax.Array) -> Block:
    """Creates equal blocks as one module whose variables have a leading `layers` axis.

    Args:
        make_block: builds one block from a source of keys.
        keys: one PRNG key per block.
    """
    graphdefs = []

    def variables(key: jax.Array) -> Any:
        graphdef, state = nnx.split(make_block(parameter_rngs(key)))
        graphdefs.append(graphdef)
        return state

    stacked = jax.vmap(variables)(keys)
    stacked = jax.tree.map(
        lambda v: v.replace(axes=("layers", *v.axes)),
        stacked,
        is_leaf=lambda v: isinstance(v, nnx.Variable),
    )
    return nnx.merge(graphdefs[0], stacked)


def rematerialize(
    function: Callable[..., Any], policy: Policy, *, scanned: bool
) -> Callable[..., Any]:
    """Applies a rematerialisation policy to the function of a block.

    Args:
        function: function of a block.
        policy: value of `REMAT_POLICIES`.
        scanned: whether the function is the body of a scan. The loop then already keeps XLA from
            undoing the rematerialisation.
    """
    if policy is None:
        return function
    return jax.checkpoint(function, policy=policy, prevent_cse=not scanned)


def layer_of(layers: Any, index: int) -> Any:
    """Selects one layer from a pytree of arrays with a leading `layers` axis."""
    return jax.tree.map(lambda leaf: leaf[index], layers)


def apply_stack(
    function: Callable[[Activation, Any], tuple[Activation, Any]],
    x: Activation,
    layers: Any,
    *,
    depth: int,
    scan: bool,
) -> tuple[Activation, Any]:
    """Applies a stack of blocks one after the other.

    Args:
        function: maps (activation, layer) to (activation, output).
        x: input of the first block, an array or a pytree of arrays.
        layers: pytree of arrays with a leading `layers` axis, such as the blocks' parameters.
        depth: number of layers.
        scan: whether to trace one block and scan, or to unroll. Both compute the same.

    Returns:
        The last activation, and the outputs stacked along a leading axis.
    """
    if scan:
        return jax.lax.scan(function, x, layers)
    outputs = []
    for i in range(depth):
        x, output = function(x, layer_of(layers, i))
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
