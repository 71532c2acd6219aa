"""Transformer decoder that attends to the patches of an image: its configuration and blocks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vit_jax.errors import UserError, lookup
from vit_jax.models.layers.attention import CrossAttention, KeyValues
from vit_jax.models.layers.block_init import BLOCK_INITS
from vit_jax.models.layers.mlp import Mlp, mlp_branch
from vit_jax.models.layers.norm import layer_norm, split_branch
from vit_jax.models.layers.stacking import Stack
from vit_jax.models.partitioning import constrain, laid_out

States = Float[Array, "batch length width"]
Memory = Float[Array, "batch patches memory_width"]
# True where a token attends to another, for all examples or each of them.
Mask = Bool[Array, "_batch 1 length length"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Architecture of a captioning decoder.

    The defaults are those of CapPa B/16 (Tschannen et al. 2023, section 3).

    Attributes:
        vocab_size: number of token ids.
        context_length: number of tokens that a caption is padded or cut to.
        width: number of features D of the residual stream.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden units of the MLPs.
        activation: key of `layers.mlp.ACTIVATIONS`.
        norm_epsilon: epsilon of LayerNorm.
        use_bias: whether attention, MLPs and norms have biases.
        interleaved: whether an MLP follows self-attention as well, and each block normalises the
            patches (CoCa).
        pad_id: id that fills a caption; it is the first input as well. Padding is not predicted.
        weight_init: key of `layers.block_init.BLOCK_INITS`.
        embed_init: initial standard deviation of the embeddings of tokens. Where it is small, the
            image is a larger part of the residual stream at first, and is read sooner.
    """

    vocab_size: int = 32_000
    context_length: int = 64
    width: int = 768
    depth: int = 6
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6
    use_bias: bool = False
    interleaved: bool = False
    pad_id: int = 0
    weight_init: str = "xavier"
    embed_init: float = 1.0

    def __post_init__(self) -> None:
        """Checks that the heads divide the width."""
        if self.width % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide width={self.width}")


def check_length(length: int, context_length: int, reader: str) -> None:
    """Checks the number of tokens of captions.

    Args:
        length: number of tokens.
        context_length: largest number.
        reader: noun of the module that reads them, for the message.

    Raises:
        UserError: too many tokens.
    """
    if length > context_length:
        raise UserError(
            f"found {length} tokens per caption, the {reader} expects at most "
            f"context_length={context_length}"
        )


class DecoderBlock(nnx.Module):
    """Pre-norm block: self-attention, attention to the patches of the image, MLP.

    An interleaved block has another MLP after self-attention. A block without patches is one of an
    ordinary transformer, with a mask of its own for each example.
    """

    def __init__(
        self,
        config: DecoderConfig,
        memory_width: int,
        *,
        recompute_mlp: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the block.

        Args:
            config: configuration of the decoder.
            memory_width: number of features of a patch; 0 for no patches.
            recompute_mlp: see `mlp_branch`.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        width, self.recompute_mlp = config.width, recompute_mlp
        init = lookup(BLOCK_INITS, config.weight_init, "weight_init")(width, config.depth)
        common: dict[str, Any] = {"use_bias": config.use_bias, "dtype": dtype, "rngs": rngs}
        heads: dict[str, Any] = {"init": init.qkv, "out_init": init.out, **common}
        norm: dict[str, Any] = {"epsilon": config.norm_epsilon, **common}
        self.norm1 = layer_norm(width, **norm)
        self.attention = CrossAttention(width, config.num_heads, **heads)
        self.interleaved = config.interleaved and memory_width > 0

        def make_mlp() -> Mlp:
            return Mlp(
                width,
                config.mlp_dim,
                activation=config.activation,
                in_init=init.mlp_in,
                out_init=init.mlp_out,
                **common,
            )

        if self.interleaved:
            self.own_norm, self.own_mlp = layer_norm(width, **norm), make_mlp()
            self.memory_norm = layer_norm(memory_width, **norm)
        if memory_width:
            self.norm2 = layer_norm(width, **norm)
            self.cross_attention = CrossAttention(
                width, config.num_heads, key_width=memory_width, **heads
            )
        self.norm3, self.mlp = layer_norm(width, **norm), make_mlp()

    def __call__(self, x: States, memory: Memory | None, mask: Mask) -> States:
        """Applies the block.

        Args:
            x: tokens (B, T, D).
            memory: patches (B, N, E), or None.
            mask: True where a token attends to another, (B or 1, 1, T, T).
        """
        x = laid_out(constrain(x, "batch", "length", "embed"))
        normalized, x = split_branch(self.norm1, x)
        x = x + self.attention(normalized, normalized, normalized, mask)
        x = self._add_own_mlp(x)
        if memory is not None:
            memory = self._normalize(memory)
            normalized, x = split_branch(self.norm2, x)
            x = x + self.cross_attention(normalized, memory, memory)
        return laid_out(constrain(self._add_mlp(x), "batch", "length", "embed"))

    def key_values(self, memory: Memory) -> KeyValues:
        """Computes the keys and values of patches (B, N, E), which `step` reads."""
        return self.cross_attention.key_values(self._normalize(memory))

    def step(
        self,
        x: Float[Array, "rows width"],
        at: Int[Array, ""],
        cache: KeyValues,
        memory: KeyValues | None,
    ) -> tuple[Float[Array, "rows width"], KeyValues]:
        """Applies the block to one token of each row, which attends to those before it.

        Args:
            x: tokens (R, D); the R / B rows of an image follow one another.
            at: index of the tokens.
            cache: keys and values of the tokens before (R, T, H, K).
            memory: keys and values of the patches of B images, see `key_values`, or None.

        Returns:
            Tokens (R, D), and the cache with their keys and values.
        """
        x = constrain(x, "batch", "embed")
        normalized = self.norm1(x)[:, None]
        cache = cache.write(self.attention.key_values(normalized), at)
        read = jnp.arange(cache.keys.shape[1]) <= at
        x = x + self.attention.attend(normalized, cache, read[None, None, None])[:, 0]
        x = self._add_own_mlp(x)
        if memory is not None:
            # The rows of an image are queries of the same patches, which are not repeated.
            queries = self.norm2(x).reshape(len(memory.keys), -1, x.shape[-1])
            x = x + self.cross_attention.attend(queries, memory).reshape(x.shape)
        return self._add_mlp(x), cache

    def _normalize(self, memory: Memory) -> Memory:
        """The patches that an interleaved block reads."""
        return self.memory_norm(memory) if self.interleaved else memory

    def _add_own_mlp(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Adds the MLP that follows self-attention in an interleaved block."""
        if not self.interleaved:
            return x
        branch, x = mlp_branch(self.own_norm, self.own_mlp, x, recompute=self.recompute_mlp)
        return x + branch

    def _add_mlp(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Adds the last MLP."""
        branch, x = mlp_branch(self.norm3, self.mlp, x, recompute=self.recompute_mlp)
        return x + branch


class DecoderStack(Stack):
    """Stack of `DecoderBlock`."""

    blocks: DecoderBlock

    def __init__(
        self,
        config: DecoderConfig,
        memory_width: int,
        *,
        scan: bool,
        remat: str,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the stack; the arguments are those of `TokenPredictor`."""
        self.dtype = dtype

        def make_block(rngs: nnx.Rngs) -> DecoderBlock:
            recompute = remat == "mlp"
            return DecoderBlock(
                config, memory_width, recompute_mlp=recompute, dtype=dtype, rngs=rngs
            )

        super().__init__(make_block, config.depth, scan=scan, remat=remat, rngs=rngs)

    def __call__(self, x: States, memory: Memory | None, mask: Mask) -> States:
        """Applies all blocks; the arguments are those of `DecoderBlock`."""

        def apply_block(block: DecoderBlock, x: jax.Array) -> tuple[jax.Array, None]:
            return block(x, memory, mask), None

        return self.apply_blocks(apply_block, x, dtype=self.dtype)[0]

    def empty_cache(self, rows: int, length: int) -> KeyValues:
        """Allocates the keys and values of the tokens that `step` will read.

        Args:
            rows: number of rows R.
            length: largest number of tokens T.

        Returns:
            Zeros (layers, R, T, H, K), compute type.
        """
        shape = (self.depth, rows, length, *self.blocks.attention.key.out_features)
        zeros = constrain(
            jnp.zeros(shape, self.dtype), "layers", "batch", "length", "heads", "head_dim"
        )
        return KeyValues(zeros, zeros)

    def key_values(self, memory: Memory) -> KeyValues:
        """Computes the keys and values of patches (B, N, E) in all blocks, (layers, B, N, H, K)."""

        def apply_block(block: DecoderBlock, memory: jax.Array) -> tuple[jax.Array, KeyValues]:
            return memory, block.key_values(memory)

        return self.apply_blocks(apply_block, memory, dtype=self.dtype)[1]

    def step(
        self,
        x: Float[Array, "rows width"],
        at: Int[Array, ""],
        cache: KeyValues,
        memory: KeyValues | None,
    ) -> tuple[Float[Array, "rows width"], KeyValues]:
        """Applies all blocks to one token of each row.

        Args:
            x: tokens (R, D).
            at: index of the tokens.
            cache: keys and values of the tokens before, see `empty_cache`.
            memory: keys and values of the patches, see `key_values`, or None.

        Returns:
            Tokens (R, D), and the cache with their keys and values.
        """

        def apply_block(
            block: DecoderBlock, x: jax.Array, cache: KeyValues, memory: KeyValues | None
        ) -> tuple[jax.Array, KeyValues]:
            return block.step(x, at, cache, memory)

        return self.apply_blocks(apply_block, x, cache, memory, dtype=self.dtype)
