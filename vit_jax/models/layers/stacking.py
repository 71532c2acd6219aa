"""Stacks of equal blocks: one trace whatever the depth, and rematerialisation policies."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

Block = TypeVar("Block", bound=nnx.Module)


def _weights_results(primitive: Any, *args: Any, **params: Any) -> bool:
    """Matmuls with weights, convolutions too."""
    is_convolution = primitive.name == "conv_general_dilated"
    matmuls = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return is_convolution or matmuls(primitive, *args, **params)


# What a block keeps for the backward pass. `mlp` recomputes the MLP's norm and activation, see
# `mlp_branch`; `dots` keeps the results of matmuls with weights and recomputes the rest, the (N, N)
# matrix of attention included; `full` keeps the block's input alone.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "mlp": None,
    "dots": _weights_results,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def stack_blocks(make_block: Callable[[jax.Array], Block], keys: jax.Array) -> Block:
    """Blocks of these keys as one module, each variable with a leading `layers` axis."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_block(jax.random.key(0))))
    stacked = jax.vmap(lambda key: nnx.state(make_block(key)))(keys)
    stacked = jax.tree.map(
        lambda v: v.replace(axes=("layers", *v.axes)),
        stacked,
        is_leaf=lambda v: isinstance(v, nnx.Variable),
    )
    return nnx.merge(graphdef, stacked)
