"""Building blocks shared by every transformer of the library.

Parameters carry metadata that the rest of the library reads instead of guessing from names:
`axes` (one logical name a dimension, for sharding rules), `decay` (whether weight decay applies)
and `bounds` (interval to which the parameter is clipped after each update).

Randomness is explicit: a call with `rng=None` is evaluation; with a key it is training.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError, lookup
from vit_jax.models.partitioning import constrain

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

# torch's GELU is the exact erf form; OpenAI's CLIP was trained with QuickGELU. The name is stored
# with the weights, because a wrong one costs accuracy without any error.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}

# What a block keeps for the backward pass. `dots` keeps the results of the weight matmuls and
# recomputes the rest, attention's (N, N) matrix included; `full` keeps the block's input alone.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def metadata(*axes: str, decay: bool = True) -> dict[str, Any]:
    """Parameter metadata: the logical name of each dimension and whether weight decay applies."""
    return {"axes": axes, "decay": decay}


def layer_norm(width: int, *, epsilon: float, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with float32 statistics whatever the compute type."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=dtype,
        # E[x^2] - E[x]^2 cancels catastrophically for large means; two passes cost nothing fused.
        use_fast_variance=False,
        scale_metadata=metadata("embed", decay=False),
        bias_metadata=metadata("embed", decay=False),
        rngs=rngs,
    )


def drop_path(x: jax.Array, rate: jax.Array | float, rng: jax.Array | None) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): zeroes a residual branch for whole examples.

    Args:
        x: branch output (B, ...).
        rate: probability of dropping, a scalar; kept examples are scaled by 1 / (1 - rate).
        rng: key, or None for evaluation, which returns `x`.
    """
    if rng is None:
        return x
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    mask = jax.random.bernoulli(rng, keep, (x.shape[0],) + (1,) * (x.ndim - 1))
    return x * (mask / keep).astype(x.dtype)


def resize_positions(
    table: jax.Array, old: tuple[int, int], new: tuple[int, int], num_prefix: int
) -> jax.Array:
    """Resizes position embeddings on their 2-D grid: bicubic with antialias, in float32.

    Args:
        table: (num_prefix + old_h * old_w, D).
        old: grid the table was made for, (rows, columns).
        new: grid wanted.
        num_prefix: leading rows (class and distillation tokens) that are kept as they are.

    Returns:
        (num_prefix + new_h * new_w, D).
    """
    if old == new:
        return table
    prefix, grid = table[:num_prefix], table[num_prefix:]
    grid = grid.astype(jnp.float32).reshape(*old, -1)
    grid = jax.image.resize(grid, (*new, grid.shape[-1]), "bicubic", antialias=True)
    return jnp.concatenate([prefix, grid.reshape(new[0] * new[1], -1).astype(table.dtype)])


def sincos_positions(grid: tuple[int, int], width: int, temperature: float = 1e4) -> jax.Array:
    """Sines and cosines of the two coordinates (MoCo v3, MAE): float32 (rows * columns, D).

    The first half of the features is of the column, the second of the row; within each, sines come
    before cosines.

    Args:
        grid: rows and columns.
        width: D, a multiple of 4.
        temperature: ratio of the longest to the shortest wavelength.
    """
    if width % 4:
        raise UserError(f"sin-cos positions need a width divisible by 4, found {width}")
    rows, columns = jnp.meshgrid(*map(jnp.arange, grid), indexing="ij")
    rates = temperature ** -(jnp.arange(width // 4) / (width // 4))
    angles = [x.reshape(-1, 1) * rates for x in (columns, rows)]
    return jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], axis=1)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused projection (Vaswani et al. 2017, section 3.2)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        causal: bool,
        qkv_init: Initializer,
        out_init: Initializer,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        head_dim = width // num_heads
        self.causal = causal
        self.qkv = nnx.LinearGeneral(
            width,
            (3, num_heads, head_dim),
            kernel_init=qkv_init,
            kernel_metadata=metadata("embed", "qkv", "heads", "head_dim"),
            bias_metadata=metadata("qkv", "heads", "head_dim", decay=False),
            dtype=dtype,
            rngs=rngs,
        )
        self.out = nnx.LinearGeneral(
            (num_heads, head_dim),
            width,
            axis=(-2, -1),
            kernel_init=out_init,
            kernel_metadata=metadata("heads", "head_dim", "embed"),
            bias_metadata=metadata("embed", decay=False),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        # Matmuls see (B N, D), see `Mlp`.
        qkv = self.qkv(x.reshape(-1, width)).reshape(batch, length, *self.qkv.out_features)
        qkv = constrain(qkv, "batch", "length", None, "heads", None)
        q, k, v = jnp.moveaxis(qkv, 2, 0)  # (B, N, H, hd) each
        x = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(x.reshape(batch * length, *x.shape[2:])).reshape(batch, length, width)


class Mlp(nnx.Module):
    """Two linear layers with an activation between.

    Tokens of all examples are one dimension: on CPU, XLA contracts (B, N, D) slowly for a weight's
    gradient and repeats the activation within, which doubles this layer's time.
    """

    def __init__(
        self,
        width: int,
        mlp_dim: int,
        *,
        activation: str,
        in_init: Initializer,
        out_init: Initializer,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.activation = lookup(ACTIVATIONS, activation, "activation")
        self.fc1 = nnx.Linear(
            width,
            mlp_dim,
            kernel_init=in_init,
            kernel_metadata=metadata("embed", "mlp"),
            bias_metadata=metadata("mlp", decay=False),
            dtype=dtype,
            rngs=rngs,
        )
        self.fc2 = nnx.Linear(
            mlp_dim,
            width,
            kernel_init=out_init,
            kernel_metadata=metadata("mlp", "embed"),
            bias_metadata=metadata("embed", decay=False),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = constrain(self.fc1(x.reshape(-1, x.shape[-1])), "batch", "mlp")
        return self.fc2(self.activation(hidden)).reshape(x.shape)


class Block(nnx.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        depth: int,
        causal: bool,
        activation: str,
        norm_epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        # OpenAI CLIP's initialisation: projections into the residual stream shrink with depth.
        into_width = initializers.normal(width**-0.5)
        into_residual = initializers.normal(width**-0.5 * (2 * depth) ** -0.5)
        into_mlp = initializers.normal((2 * width) ** -0.5)
        norm = {"epsilon": norm_epsilon, "dtype": dtype, "rngs": rngs}
        self.norm1 = layer_norm(width, **norm)
        self.attention = Attention(
            width,
            num_heads,
            causal=causal,
            qkv_init=into_width,
            out_init=into_residual,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = layer_norm(width, **norm)
        self.mlp = Mlp(
            width,
            mlp_dim,
            activation=activation,
            in_init=into_mlp,
            out_init=into_residual,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: jax.Array, drop_rate: jax.Array | float = 0.0, rng: jax.Array | None = None
    ) -> jax.Array:
        keys = (None, None) if rng is None else jax.random.split(rng)
        x = constrain(x, "batch", "length", "embed")
        x = x + drop_path(self.attention(self.norm1(x)), drop_rate, keys[0])
        x = x + drop_path(self.mlp(self.norm2(x)), drop_rate, keys[1])
        return constrain(x, "batch", "length", "embed")


class Transformer(nnx.Module):
    """A stack of equal blocks whose parameters are stacked along a leading `layers` axis.

    With `scan` one block is traced whatever the depth; without it the blocks are unrolled. Both
    compute the same from the same parameters.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        *,
        causal: bool,
        activation: str,
        norm_epsilon: float,
        max_drop_path: float,
        scan: bool,
        remat: str,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        if width % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide width={width}")
        self.depth, self.scan = depth, scan
        self.remat_policy = lookup(REMAT_POLICIES, remat, "remat policy")
        self.max_drop_path = max_drop_path

        def make_block(key: jax.Array) -> Block:
            return Block(
                width,
                num_heads,
                mlp_dim,
                depth=depth,
                causal=causal,
                activation=activation,
                norm_epsilon=norm_epsilon,
                dtype=dtype,
                rngs=nnx.Rngs(key),
            )

        keys = jax.random.split(rngs.params(), depth)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_block(jax.random.key(0))))
        stacked = jax.vmap(lambda key: nnx.state(make_block(key)))(keys)
        stacked = jax.tree.map(
            lambda p: p.replace(axes=("layers", *p.axes)),
            stacked,
            is_leaf=lambda p: isinstance(p, nnx.Variable),
        )
        self.blocks = nnx.merge(graphdef, stacked)

    def __call__(
        self, x: jax.Array, rng: jax.Array | None = None, *, intermediates: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """Applies all blocks.

        Args:
            x: tokens (B, N, D).
            rng: key for stochastic depth, or None for evaluation.
            intermediates: whether to return the output of every block too.

        Returns:
            Tokens (B, N, D) and the outputs of all blocks (depth, B, N, D) or None.
        """
        graphdef, params = nnx.split(self.blocks)
        # Linear rule of Huang et al. 2016: the deeper, the likelier dropped.
        rates = jnp.linspace(0.0, self.max_drop_path, self.depth)
        if self.max_drop_path == 0:
            rng = None
        keys = None if rng is None else jax.random.split(rng, self.depth)

        def apply_block(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array | None]:
            layer_params, rate, key = layer
            x = nnx.merge(graphdef, layer_params)(x, rate, key)
            return x, (x if intermediates else None)

        if self.remat_policy is not None:
            # Within a scan the loop already keeps XLA from undoing the rematerialisation.
            apply_block = jax.checkpoint(
                apply_block, policy=self.remat_policy, prevent_cse=not self.scan
            )
        layers = (params, rates, keys)
        if self.scan:
            return jax.lax.scan(apply_block, x, layers)
        outputs: list[Any] = []
        for i in range(self.depth):
            x, output = apply_block(x, jax.tree.map(lambda leaf: leaf[i], layers))  # noqa: B023
            outputs.append(output)
        return x, (jnp.stack(outputs) if intermediates else None)
