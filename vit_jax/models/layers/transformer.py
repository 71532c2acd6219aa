"""Pre-norm transformer blocks, stacked and scanned (Dosovitskiy et al. 2021, section 3.1)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from vit_jax.errors import UserError, check_name, lookup
from vit_jax.models.layers.attention import QKV_BIASES, Attention
from vit_jax.models.layers.block_init import BLOCK_INITS
from vit_jax.models.layers.drop_path import drop_path, drop_path_schedule
from vit_jax.models.layers.mlp import Mlp, mlp_branch
from vit_jax.models.layers.norm import NORMS, split_branch
from vit_jax.models.layers.parameters import metadata
from vit_jax.models.layers.rotary import Angles
from vit_jax.models.layers.stacking import Stack
from vit_jax.models.partitioning import constrain, laid_out

# True for tokens, False for padding, to which no token attends; None for no padding.
Mask = Bool[Array, "batch length"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Configuration that all blocks of a stack share.

    Attributes:
        width: number of features D of the residual stream.
        num_heads: attention heads; divides `width`.
        mlp_dim: hidden units of the MLP.
        activation: key of `layers.mlp.ACTIVATIONS`.
        norm_epsilon: epsilon of the norms.
        norm: key of `layers.norm.NORMS`: "layer", or "rms" (AIMv2).
        gated_mlp: whether the MLP is gated; with the activation "silu" it is SwiGLU.
        qkv_bias: which of queries, keys and values have a bias: "qkv", "qv" (DINOv3) or "none".
        use_bias: whether the other linear layers have biases; not in AIMv2.
        causal: whether a token attends only to those before it and to itself.
        layer_scale: initial factor of each residual branch's features (LayerScale, Touvron et al.
            2021, "Going deeper with image transformers"); 0 for no LayerScale.
        qk_norm: whether queries and keys are normalised.
        weight_init: key of `layers.block_init.BLOCK_INITS`.
    """

    width: int
    num_heads: int
    mlp_dim: int
    activation: str
    norm_epsilon: float
    norm: str = "layer"
    gated_mlp: bool = False
    qkv_bias: str = "qkv"
    use_bias: bool = True
    causal: bool = False
    layer_scale: float = 0.0
    qk_norm: bool = False
    weight_init: str = "normal"

    def __post_init__(self) -> None:
        """Checks the names, and that the heads divide the width."""
        check_name(self.norm, NORMS, "norm")
        check_name(self.qkv_bias, QKV_BIASES, "qkv_bias")
        if self.width % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide width={self.width}")


class LayerScale(nnx.Module):
    """Learned factor for each feature of a residual branch."""

    def __init__(self, width: int, initial: float, dtype: Any) -> None:
        """Builds the layer.

        Args:
            width: number of features D.
            initial: initial value of all factors.
            dtype: compute type.
        """
        self.dtype = dtype
        gamma = jnp.full((width,), initial, jnp.float32)
        self.gamma = nnx.Param(gamma, **metadata("embed", decay=False))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Scales the features (..., D)."""
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
    ) -> None:
        """Builds the block.

        Args:
            config: configuration of the block.
            depth: number of blocks in the stack, for initialisation.
            recompute_mlp: see `mlp_branch`.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        width = config.width
        init = lookup(BLOCK_INITS, config.weight_init, "weight_init")(width, depth)
        norm = functools.partial(
            NORMS[config.norm], width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs
        )
        self.layer_scale, self.recompute_mlp = config.layer_scale > 0, recompute_mlp
        self.norm1 = norm()
        self.attention = Attention(
            width,
            config.num_heads,
            causal=config.causal,
            qkv_init=init.qkv,
            out_init=init.out,
            qkv_bias=config.qkv_bias,
            out_bias=config.use_bias,
            qk_norm_epsilon=config.norm_epsilon if config.qk_norm else None,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = norm()
        self.mlp = Mlp(
            width,
            config.mlp_dim,
            activation=config.activation,
            gated=config.gated_mlp,
            use_bias=config.use_bias,
            in_init=init.mlp_in,
            out_init=init.mlp_out,
            dtype=dtype,
            rngs=rngs,
        )
        if self.layer_scale:
            self.scale1 = LayerScale(width, config.layer_scale, dtype)
            self.scale2 = LayerScale(width, config.layer_scale, dtype)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        drop_rate: Float[Array, ""] | float = 0.0,
        rng: Key[Array, ""] | None = None,
        angles: Angles | None = None,
        mask: Mask = None,
    ) -> Float[Array, "batch length width"]:
        """Applies the block.

        Args:
            x: tokens (B, N, D).
            drop_rate: stochastic depth of both branches.
            rng: PRNG key for stochastic depth, or None for evaluation.
            angles: rotation of queries and keys (RoPE), see `layers.rotary`; or None.
            mask: see `Mask`.
        """
        keys = (None, None) if rng is None else jax.random.split(rng)
        x = laid_out(constrain(x, "batch", "length", "embed"))
        normalized, x = split_branch(self.norm1, x)
        branch = self.attention(normalized, angles, mask)
        x = x + drop_path(self.scale1(branch) if self.layer_scale else branch, drop_rate, keys[0])
        branch, x = mlp_branch(self.norm2, self.mlp, x, recompute=self.recompute_mlp)
        x = x + drop_path(self.scale2(branch) if self.layer_scale else branch, drop_rate, keys[1])
        return laid_out(constrain(x, "batch", "length", "embed"))


class Transformer(Stack):
    """Stack of `Block`."""

    blocks: Block

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
    ) -> None:
        """Builds the stack.

        Args:
            config: configuration of the blocks.
            depth: number of blocks.
            max_drop_path: stochastic depth of the last block, linear from 0 at the first.
            scan: whether to scan the blocks.
            remat: key of `layers.stacking.REMAT_POLICIES`.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.dtype, self.max_drop_path = dtype, max_drop_path

        def make_block(rngs: nnx.Rngs) -> Block:
            return Block(
                config,
                depth=depth,
                recompute_mlp=remat == "mlp",
                dtype=dtype,
                rngs=rngs,
            )

        super().__init__(make_block, depth, scan=scan, remat=remat, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        rng: Key[Array, ""] | None = None,
        *,
        angles: Angles | None = None,
        mask: Mask = None,
        intermediates: bool = False,
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "depth batch length width"] | None]:
        """Applies all blocks.

        Args:
            x: tokens (B, N, D).
            rng: PRNG key for stochastic depth, or None for evaluation.
            angles: rotation of queries and keys (RoPE), see `layers.rotary`; or None.
            mask: see `Mask`.
            intermediates: whether to return the output of every block as well.

        Returns:
            Tokens (B, N, D), and the outputs of all blocks (depth, B, N, D) or None.
        """
        rates, keys = drop_path_schedule(self.max_drop_path, self.depth, rng)

        def apply_block(
            block: Block, x: jax.Array, rate: jax.Array, key: jax.Array | None
        ) -> tuple[jax.Array, jax.Array | None]:
            x = block(x, rate, key, angles, mask)
            return x, (x if intermediates else None)

        return self.apply_blocks(apply_block, x, rates, keys, dtype=self.dtype)

    def attention_maps(
        self,
        x: Float[Array, "batch length width"],
        angles: Angles | None = None,
        mask: Mask = None,
    ) -> Float[Array, "depth batch heads length length"]:
        """Computes the attention weights of all blocks, float32.

        Args:
            x: tokens (B, N, D).
            angles: see `__call__`.
            mask: see `Mask`.
        """

        def apply_block(block: Block, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            maps = block.attention.maps(block.norm1(x), angles, mask)
            return block(x, angles=angles, mask=mask), maps

        return self.apply_blocks(apply_block, x, dtype=self.dtype)[1]

    def apply_shifted(
        self,
        x: Float[Array, "batch length width"],
        shifts: Float[Array, "depth batch length width"],
        angles: Angles | None = None,
        mask: Mask = None,
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "depth batch length width"]]:
        """Applies all blocks, and adds an array to the input of each.

        The gradient with respect to zeros is that with respect to the input.

        Args:
            x: tokens (B, N, D).
            shifts: arrays that are added.
            angles: see `__call__`.
            mask: see `Mask`.

        Returns:
            Tokens (B, N, D), and the inputs of all blocks.
        """

        def apply_block(
            block: Block, x: jax.Array, shift: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            return block(x + shift, angles=angles, mask=mask), x

        return self.apply_blocks(apply_block, x, shifts, dtype=self.dtype)
