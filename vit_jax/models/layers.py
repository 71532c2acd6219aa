"""Building blocks shared by every transformer of the library.

Parameters carry metadata that the rest of the library reads instead of guessing from names:
`axes` (one logical name a dimension, for sharding rules), `decay` (whether weight decay applies)
and `bounds` (interval to which the parameter is clipped after each update).

Randomness is explicit: a call with `rng=None` is evaluation; with a key it is training.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError, lookup
from vit_jax.models.partitioning import constrain, laid_out, platform

Block = TypeVar("Block", bound=nnx.Module)
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
# Path of a part of a model -> layers between it and the output, one each for a stack of layers.
LayersAbove = dict[str, int | range]

# torch's GELU is the exact erf form; OpenAI's CLIP was trained with QuickGELU. The name is stored
# with the weights, because a wrong one costs accuracy without any error.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


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


def metadata(*axes: str, decay: bool = True) -> dict[str, Any]:
    """Parameter metadata: the logical name of each dimension and whether weight decay applies."""
    return {"axes": axes, "decay": decay}


def nested(name: str, module: Any) -> LayersAbove:
    """What a part of a model says of its layers, under the model's names."""
    return {f"{name}/{path}": above for path, above in module.layers_above().items()}


def layer_norm(
    width: int, *, epsilon: float, axis: str = "embed", dtype: Any, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """LayerNorm with float32 statistics whatever the compute type."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=dtype,
        # E[x^2] - E[x]^2 cancels catastrophically for large means; two passes cost nothing fused.
        use_fast_variance=False,
        scale_metadata=metadata(axis, decay=False),
        bias_metadata=metadata(axis, decay=False),
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


def check_layers(layers: Sequence[int], count: int, what: str = "blocks") -> None:
    """Refuses numbers of blocks or stages that do not exist; negative ones count from the last."""
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(f"layer {layer} does not exist: this tower has {count} {what}")


def attention_projections(
    width: int,
    num_heads: int,
    *,
    qkv_init: Initializer,
    out_init: Initializer,
    dtype: Any,
    rngs: nnx.Rngs,
) -> tuple[nnx.LinearGeneral, nnx.LinearGeneral]:
    """The fused projection (D, 3, H, hd) into queries, keys and values, and the one back."""
    head_dim = width // num_heads
    qkv = nnx.LinearGeneral(
        width,
        (3, num_heads, head_dim),
        kernel_init=qkv_init,
        kernel_metadata=metadata("embed", "qkv", "heads", "head_dim"),
        bias_metadata=metadata("qkv", "heads", "head_dim", decay=False),
        dtype=dtype,
        rngs=rngs,
    )
    out = nnx.LinearGeneral(
        (num_heads, head_dim),
        width,
        axis=(-2, -1),
        kernel_init=out_init,
        kernel_metadata=metadata("heads", "head_dim", "embed"),
        bias_metadata=metadata("embed", decay=False),
        dtype=dtype,
        rngs=rngs,
    )
    return qkv, out


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
        qk_norm_epsilon: float | None = None,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
            width: D.
            num_heads: divides D.
            causal: whether a token sees only those before it.
            qkv_init: of the fused projection (D, 3, H, hd).
            out_init: of the output projection (H, hd, D).
            qk_norm_epsilon: LayerNorm of queries and keys, each head's features (Dehghani et al.
                2023, section 2); None for none.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.causal = causal
        self.qk_norm = qk_norm_epsilon is not None
        self.qkv, self.out = attention_projections(
            width, num_heads, qkv_init=qkv_init, out_init=out_init, dtype=dtype, rngs=rngs
        )
        if qk_norm_epsilon is not None:
            head_dim = width // num_heads
            norm = {"epsilon": qk_norm_epsilon, "axis": "head_dim", "dtype": dtype, "rngs": rngs}
            self.q_norm = layer_norm(head_dim, **norm)
            self.k_norm = layer_norm(head_dim, **norm)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._tokens_flat(x) if platform() == "cpu" else self._three_projections(x)

    def _tokens_flat(self, x: jax.Array) -> jax.Array:
        """For CPUs, see `Mlp`."""
        batch, length, width = x.shape
        qkv = self.qkv(x.reshape(-1, width)).reshape(batch, length, *self.qkv.out_features)
        qkv = constrain(qkv, "batch", "length", None, "heads", None)
        q, k, v = jnp.moveaxis(qkv, 2, 0)  # (B, N, H, hd) each
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        x = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(x.reshape(batch * length, *x.shape[2:])).reshape(batch, length, width)

    def _three_projections(self, x: jax.Array) -> jax.Array:
        """For accelerators: the gradient of one fused result would be stacked, that is copied."""
        kernel, bias = weights(self.qkv, x.dtype)

        def project(i: int) -> jax.Array:
            heads = jnp.einsum("bnd,dhk->bnhk", x, kernel[:, i]) + bias[i]
            # Tokens innermost, as the gradients want them: otherwise they are copied there.
            return laid_out(constrain(heads, "batch", "length", "heads", None), (0, 2, 3, 1))

        q, k, v = (project(i) for i in range(3))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        scores = jnp.einsum("bnhk,bmhk->bhnm", q * q.shape[-1] ** -0.5, k)
        if self.causal:
            scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
        x = jnp.einsum("bhnm,bmhk->bnhk", softmax(scores), v)
        kernel, bias = weights(self.out, x.dtype)
        return jnp.einsum("bnhk,hkd->bnd", x, kernel) + bias


def softmax(scores: jax.Array) -> jax.Array:
    """Of the last axis, with float32 sums.

    Not `jax.nn.dot_product_attention`, which has a TPU write scores out in float32. Here they stay
    in the compute type, less the largest, which rounds them no more than the matmul did.
    """
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    powers = jnp.exp((scores - largest).astype(jnp.float32))
    return (powers / jnp.sum(powers, axis=-1, keepdims=True)).astype(scores.dtype)


def weights(layer: nnx.LinearGeneral, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of a layer that has both, in the compute type."""
    assert layer.bias is not None
    return layer.kernel[...].astype(dtype), layer.bias[...].astype(dtype)


class Mlp(nnx.Module):
    """Two linear layers with an activation between.

    On CPUs the tokens of all examples are one dimension: there XLA contracts (B, N, D) slowly for a
    weight's gradient and repeats the activation within, which doubles this layer's time. On TPUs
    the detour costs a third of the time of a ViT-B block without attention.
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
        if platform() != "cpu":
            hidden = constrain(self.fc1(x), "batch", *(None,) * (x.ndim - 2), "mlp")
            return self.fc2(self.activation(hidden))
        hidden = constrain(self.fc1(x.reshape(-1, x.shape[-1])), "batch", "mlp")
        return self.fc2(self.activation(hidden)).reshape(x.shape)


def mlp_branch(norm: nnx.LayerNorm, mlp: Mlp, x: jax.Array, *, recompute: bool) -> jax.Array:
    """mlp(norm(x)); with `recompute` the backward pass has its matmuls' results alone.

    Left to itself, XLA keeps the normalised tokens too: for SigLIP B/16 on a TPU v5e 0.6 GiB, which
    saves 6% of the step's time.
    """
    if not recompute:
        return mlp(norm(x))
    graphdef, params = nnx.split((norm, mlp))

    def apply(x: jax.Array, params: nnx.State) -> jax.Array:
        norm, mlp = nnx.merge(graphdef, params)
        return mlp(norm(x))

    return jax.checkpoint(apply, policy=REMAT_POLICIES["dots"])(x, params)
