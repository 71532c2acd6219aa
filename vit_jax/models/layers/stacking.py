"""Stacks of equal blocks, scanned or unrolled, and rematerialisation policies."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import lookup
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


def unstack(layers: Any, depth: int) -> list[Any]:
    """Splits a pytree of arrays with a leading `layers` axis into its layers.

    The gradient of a split is one concatenation. That of indexing would be an array of all layers
    per layer, zero except for one, and their sum: 18% of a training step of CLIP on a CPU.

    Args:
        layers: pytree of arrays with a leading `layers` axis.
        depth: number of layers.
    """

    def split(leaf: jax.Array) -> list[jax.Array]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return list(leaf)
        return [part[0] for part in jax.lax.split(leaf, (1,) * depth)]

    leaves, tree = jax.tree.flatten(layers)
    columns = [split(leaf) for leaf in leaves]
    return [jax.tree.unflatten(tree, row) for row in zip(*columns, strict=True)]


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
    for layer in unstack(layers, depth):
        x, output = function(x, layer)
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


class Stack(nnx.Module):
    """Stack of equal blocks whose parameters have a leading `layers` axis.

    With `scan` one block is traced regardless of the depth; without it the blocks are unrolled.
    Both compute the same from the same parameters.

    Attributes:
        blocks: the blocks, as one module.
        depth: number of blocks.
    """

    def __init__(
        self,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        scan: bool,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the blocks.

        Args:
            make_block: builds one block from a source of keys.
            depth: number of blocks.
            scan: whether to scan the blocks.
            remat: key of `REMAT_POLICIES`.
            rngs: source of the parameters' keys.
        """
        self.depth, self.scan = depth, scan
        self.remat_policy = lookup(REMAT_POLICIES, remat, "remat policy")
        self.blocks = stack_blocks(make_block, jax.random.split(rngs.params(), depth))

    def apply_blocks(
        self,
        function: Callable[..., tuple[Activation, Any]],
        x: Activation,
        *layers: Any,
        dtype: Any = None,
    ) -> tuple[Activation, Any]:
        """Applies the blocks one after the other.

        Args:
            function: maps (block, activation, *layer) to (activation, output).
            x: input of the first block, an array or a pytree of arrays.
            *layers: pytrees of arrays with a leading `layers` axis, or None.
            dtype: compute type to which the matrices of all blocks are cast at once, or None.
                The gradients of a layer then have this type, and are not kept in float32 until
                those of the first layer are computed. Vectors, such as those of norms, stay
                float32.

        Returns:
            The last activation, and the outputs stacked along a leading axis.
        """
        graphdef, params = nnx.split(self.blocks)
        if dtype is not None:
            params = jax.tree.map(lambda p: p.astype(dtype) if p.ndim > 2 else p, params)

        def apply_block(x: Activation, layer: Any) -> tuple[Activation, Any]:
            own, *rest = layer
            return function(nnx.merge(graphdef, own), x, *rest)

        return apply_stack(
            rematerialize(apply_block, self.remat_policy, scanned=self.scan),
            x,
            (params, *layers),
            depth=self.depth,
            scan=self.scan,
        )
