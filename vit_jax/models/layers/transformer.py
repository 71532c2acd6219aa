"""Pre-norm transformer blocks, stacked and scanned (Dosovitskiy et al. 2021, section 3.1)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError, lookup
from vit_jax.models.layers.attention import Attention
from vit_jax.models.layers.drop_path import drop_path
from vit_jax.models.layers.mlp import Mlp, mlp_branch
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import Initializer, metadata
from vit_jax.models.layers.stacking import REMAT_POLICIES, stack_blocks
from vit_jax.models.partitioning import constrain, laid_out


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """Initialisers of the four matrices of a block.

    Attributes:
        qkv: (D, 3, H, hd).
        out: (H, hd, D), into the residual stream.
        mlp_in: (D, mlp_dim).
        mlp_out: (mlp_dim, D), into the residual stream.
    """

    qkv: Initializer
    out: Initializer
    mlp_in: Initializer
    mlp_out: Initializer


def _clip_init(width: int, depth: int) -> BlockInit:
    """OpenAI CLIP: projections into the residual stream shrink with depth."""
    residual = initializers.normal(width**-0.5 * (2 * depth) ** -0.5)
    return BlockInit(
        qkv=initializers.normal(width**-0.5),
        out=residual,
        mlp_in=initializers.normal((2 * width) ** -0.5),
        mlp_out=residual,
    )


def _normal_init(width: int, depth: int) -> BlockInit:
    """DeiT, Swin and timm: 0.02 everywhere; their truncation at 2, not at 0.04, cuts nothing."""
    del width, depth
    small = initializers.normal(0.02)
    return BlockInit(small, small, small, small)


def _xavier_init(width: int, depth: int) -> BlockInit:
    """ViT, big_vision and MAE: Glorot's uniform; q, k and v count as three (D, D) matrices."""
    del depth
    limit = math.sqrt(3.0 / width)

    def square(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return BlockInit(square, square, initializers.xavier_uniform(), initializers.xavier_uniform())


BLOCK_INITS: dict[str, Callable[[int, int], BlockInit]] = {
    "clip": _clip_init,
    "normal": _normal_init,
    "xavier": _xavier_init,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What all blocks of a stack have in common.

    Attributes:
        width: residual stream, D.
        num_heads: attention heads; divides `width`.
        mlp_dim: hidden units of the MLP.
        activation: a key of `layers.ACTIVATIONS`.
        norm_epsilon: LayerNorm epsilon.
        causal: whether a token sees only those before it.
        layer_scale: initial factor of each residual branch's features (LayerScale, Touvron et al.
            2021, "Going deeper with image transformers"); 0 for none.
        qk_norm: whether queries and keys are normalised.
        weight_init: a key of `BLOCK_INITS`.
    """

    width: int
    num_heads: int
    mlp_dim: int
    activation: str
    norm_epsilon: float
    causal: bool = False
    layer_scale: float = 0.0
    qk_norm: bool = False
    weight_init: str = "normal"

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide width={self.width}")


class LayerScale(nnx.Module):
    """Learned factor of each feature of a residual branch."""

    def __init__(self, width: int, initial: float, dtype: Any):
        self.dtype = dtype
        self.gamma = nnx.Param(jnp.full((width,), initial), **metadata("embed", decay=False))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...].astype(self.dtype)


class Block(nnx.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        config: BlockConfig,
        *,
        depth: int,
        recompute_mlp: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        width = config.width
        init = lookup(BLOCK_INITS, config.weight_init, "weight_init")(width, depth)
        norm = {"epsilon": config.norm_epsilon, "dtype": dtype, "rngs": rngs}
        self.layer_scale, self.recompute_mlp = config.layer_scale > 0, recompute_mlp
        self.norm1 = layer_norm(width, **norm)
        self.attention = Attention(
            width,
            config.num_heads,
            causal=config.causal,
            qkv_init=init.qkv,
            out_init=init.out,
            qk_norm_epsilon=config.norm_epsilon if config.qk_norm else None,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = layer_norm(width, **norm)
        self.mlp = Mlp(
            width,
            config.mlp_dim,
            activation=config.activation,
            in_init=init.mlp_in,
            out_init=init.mlp_out,
            dtype=dtype,
            rngs=rngs,
        )
        if self.layer_scale:
            self.scale1 = LayerScale(width, config.layer_scale, dtype)
            self.scale2 = LayerScale(width, config.layer_scale, dtype)

    def __call__(
        self, x: jax.Array, drop_rate: jax.Array | float = 0.0, rng: jax.Array | None = None
    ) -> jax.Array:
        keys = (None, None) if rng is None else jax.random.split(rng)
        x = laid_out(constrain(x, "batch", "length", "embed"))
        branch = self.attention(self.norm1(x))
        x = x + drop_path(self.scale1(branch) if self.layer_scale else branch, drop_rate, keys[0])
        branch = mlp_branch(self.norm2, self.mlp, x, recompute=self.recompute_mlp)
        x = x + drop_path(self.scale2(branch) if self.layer_scale else branch, drop_rate, keys[1])
        return laid_out(constrain(x, "batch", "length", "embed"))


class Transformer(nnx.Module):
    """A stack of equal blocks whose parameters are stacked along a leading `layers` axis.

    With `scan` one block is traced whatever the depth; without it the blocks are unrolled. Both
    compute the same from the same parameters.
    """

    def __init__(
        self,
        config: BlockConfig,
        depth: int,
        *,
        max_drop_path: float = 0.0,
        scan: bool,
        remat: str,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.depth, self.scan, self.dtype = depth, scan, dtype
        self.remat_policy = lookup(REMAT_POLICIES, remat, "remat policy")
        self.max_drop_path = max_drop_path

        def make_block(key: jax.Array) -> Block:
            return Block(
                config,
                depth=depth,
                recompute_mlp=remat == "mlp",
                dtype=dtype,
                rngs=nnx.Rngs(key),
            )

        self.blocks = stack_blocks(make_block, jax.random.split(rngs.params(), depth))

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
        # Once for the whole stack: a layer's gradients come in the compute type, and would be kept
        # in float32 until the last layer has its own. Vectors, as those of norms, stay.
        params = jax.tree.map(lambda p: p.astype(self.dtype) if p.ndim > 2 else p, params)
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
