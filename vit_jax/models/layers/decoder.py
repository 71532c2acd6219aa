"""Transformer decoder that predicts the tokens of captions from the patches of an image."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int

from vit_jax.errors import UserError, lookup
from vit_jax.models.layers.attention import CrossAttention
from vit_jax.models.layers.block_init import BLOCK_INITS
from vit_jax.models.layers.mlp import Mlp, mlp_branch
from vit_jax.models.layers.norm import layer_norm, split_branch
from vit_jax.models.layers.parameters import metadata, weights
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
        if memory is not None and self.interleaved:
            branch, x = mlp_branch(self.own_norm, self.own_mlp, x, recompute=self.recompute_mlp)
            x, memory = x + branch, self.memory_norm(memory)
        if memory is not None:
            normalized, x = split_branch(self.norm2, x)
            x = x + self.cross_attention(normalized, memory, memory)
        branch, x = mlp_branch(self.norm3, self.mlp, x, recompute=self.recompute_mlp)
        return laid_out(constrain(x + branch, "batch", "length", "embed"))


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


class TokenPredictor(nnx.Module):
    """Stack with a norm and a head over the vocabulary."""

    def __init__(
        self,
        config: DecoderConfig,
        memory_width: int,
        *,
        head_bias: bool = False,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ) -> None:
        """Builds the stack.

        Args:
            config: architecture.
            memory_width: number of features of a patch E.
            head_bias: whether the head has a bias; it then starts at zero.
            rngs: source of the parameters' keys.
            dtype: compute type.
            scan: whether to scan the blocks or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        self.config, self.dtype, width = config, dtype, config.width
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.blocks = DecoderStack(config, memory_width, scan=scan, remat=remat, **execution)
        self.norm = layer_norm(
            width, epsilon=config.norm_epsilon, use_bias=config.use_bias, **execution
        )
        self.head = nnx.Linear(
            width,
            config.vocab_size,
            use_bias=head_bias,
            kernel_init=initializers.zeros if head_bias else initializers.normal(width**-0.5),
            kernel_metadata=metadata("embed", "vocab"),
            bias_metadata=metadata("vocab", decay=False),
            **execution,
        )

    def states(self, x: States, memory: Memory, mask: Mask) -> States:
        """Applies blocks and norm; the arguments are those of `DecoderBlock`."""
        return self.norm(self.blocks(x, memory.astype(self.dtype), mask))

    def logits(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch vocab"]:
        """Computes the logits of tokens, float32.

        Args:
            states: features (..., D), of a few tokens: a loss over whole captions is computed in
                parts, see `objectives.token_loss`.
        """
        return head_logits(states, *weights(self.head, jnp.float32))


class CaptionDecoder(TokenPredictor):
    """Predicts each token of a caption, from those before it or from the image alone."""

    def __init__(
        self, config: DecoderConfig, memory_width: int, *, rngs: nnx.Rngs, **execution: Any
    ) -> None:
        """Builds the decoder.

        Args:
            config: architecture.
            memory_width: number of features of a patch E.
            rngs: source of the parameters' keys.
            **execution: dtype, scan and remat, see `TokenPredictor`.
        """
        super().__init__(config, memory_width, head_bias=True, rngs=rngs, **execution)
        width = config.width
        self.token_embed = nnx.Embed(
            config.vocab_size + 1,  # the last one is the input of tokens that are not shown
            width,
            embedding_init=initializers.normal(config.embed_init),
            embedding_metadata=metadata("vocab", "embed", decay=False),
            dtype=self.dtype,
            rngs=rngs,
        )
        self.positions = nnx.Param(
            initializers.normal(width**-0.5)(rngs.params(), (config.context_length, width)),
            **metadata("length", "embed", decay=False),
        )

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        memory: Memory,
        parallel: Bool[Array, " batch"] | None = None,
    ) -> States:
        """Computes the features from which each token is predicted.

        An autoregressive example reads the tokens before the one to predict. A parallel example
        reads no token: all of its inputs are the additional id `vocab_size`, and each of them
        attends to all others (section 3, "Parallel prediction").

        Args:
            tokens: ids (B, T), padded after the end of text; at most `context_length`.
            memory: patches (B, N, E).
            parallel: whether each example is predicted in parallel (B,); None for none.

        Returns:
            Normalised features (B, T, D), compute type; `head` maps those at t to the logits of
            token t.

        Raises:
            UserError: more tokens than `context_length`.
        """
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise UserError(
                f"found {length} tokens per caption, the decoder expects at most "
                f"context_length={self.config.context_length}"
            )
        inputs = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=self.config.pad_id)[:, :-1]
        mask = jnp.tri(length, dtype=bool)[None, None]
        if parallel is not None:
            inputs = jnp.where(parallel[:, None], self.config.vocab_size, inputs)
            mask = mask | parallel[:, None, None, None]
        x = self.token_embed(inputs) + self.positions[:length].astype(self.dtype)
        return self.states(x, memory, mask)


def head_logits(
    states: Float[Array, "*batch width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
) -> Float[Array, "*batch vocab"]:
    """Computes logits in float32, from products in the type of the states.

    Args:
        states: (..., D).
        kernel: (D, V).
        bias: (V,).
    """
    kernel = kernel.astype(states.dtype)
    return jnp.matmul(states, kernel, preferred_element_type=jnp.float32) + bias
