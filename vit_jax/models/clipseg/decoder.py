"""Decoder of CLIPSeg: from blocks of an image tower and a condition to the logits of a mask."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.models.layers.convolution import Enlarging, convolution
from vit_jax.models.layers.heads import linear_layer
from vit_jax.models.layers.parameters import TORCH_INIT
from vit_jax.models.layers.post_norm import PostNormBlock
from vit_jax.models.layers.stacking import stack_blocks, unstack
from vit_jax.models.partitioning import constrain

# Sides of the two enlargements of the refined decoder. Their product is the patch size.
REFINED_SCALES = (4, 4)


class DecoderBlock(nnx.Module):
    """Reduction of the tokens of a block of the tower, and the transformer block that reads it."""

    def __init__(
        self,
        width: int,
        reduced_width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        norm_epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the block.

        Args:
            width: number of features of the tower D.
            reduced_width: number of features of the decoder R.
            num_heads: attention heads; divides R.
            mlp_dim: hidden units of the MLP.
            norm_epsilon: epsilon of LayerNorm.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        axes = ("embed", "reduced")
        self.reduce = linear_layer(width, reduced_width, axes, TORCH_INIT, dtype, rngs)
        self.block = PostNormBlock(
            reduced_width,
            num_heads,
            mlp_dim,
            activation="relu",
            norm_epsilon=norm_epsilon,
            init=TORCH_INIT,
            dtype=dtype,
            rngs=rngs,
        )


class MaskDecoder(nnx.Module):
    """Reads blocks of the tower from the last to the first (Lüddecke and Ecker 2022, section 3).

    The condition scales and shifts the features before one of the blocks (FiLM, Dumoulin et al.
    2018). A transposed convolution enlarges each patch to its pixels.
    """

    def __init__(
        self,
        width: int,
        reduced_width: int,
        *,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        condition_width: int,
        condition_block: int,
        patch_size: int,
        refined: bool,
        norm_epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the decoder.

        Args:
            width: number of features of the tower D.
            reduced_width: number of features of the decoder R.
            depth: number of blocks.
            num_heads: attention heads; divides R.
            mlp_dim: hidden units of the MLPs.
            condition_width: number of features of a condition E.
            condition_block: index of the block whose input the condition changes.
            patch_size: side of a patch, px.
            refined: whether a convolution and two transposed ones follow the blocks instead of one
                transposed convolution.
            norm_epsilon: epsilon of LayerNorm.
            dtype: compute type, except for the last layer, which is float32.
            rngs: source of the parameters' keys.
        """
        self.depth, self.condition_block, self.refined = depth, condition_block, refined
        self.dtype = dtype

        def make_block(rngs: nnx.Rngs) -> DecoderBlock:
            return DecoderBlock(
                width,
                reduced_width,
                num_heads,
                mlp_dim,
                norm_epsilon=norm_epsilon,
                dtype=dtype,
                rngs=rngs,
            )

        self.blocks = stack_blocks(make_block, jax.random.split(rngs.params(), depth))

        def make_film() -> nnx.Linear:
            axes = ("joint", "reduced")
            return linear_layer(condition_width, reduced_width, axes, TORCH_INIT, dtype, rngs)

        self.film_scale, self.film_shift = make_film(), make_film()
        if refined:
            first, last = REFINED_SCALES
            self.convolution = convolution(
                reduced_width,
                reduced_width,
                3,
                use_bias=True,
                kernel_init=TORCH_INIT,
                dtype=dtype,
                rngs=rngs,
            )
            half = reduced_width // 2
            self.enlarge = Enlarging(reduced_width, half, first, dtype=dtype, rngs=rngs)
            self.output = Enlarging(half, 1, last, dtype=jnp.float32, rngs=rngs)
        else:
            self.output = Enlarging(reduced_width, 1, patch_size, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self,
        activations: Sequence[Float[Array, "batch tokens dim"]],
        conditions: Float[Array, "batch prompts condition"],
        grid: tuple[int, int],
    ) -> Float[Array, "batch prompts height width"]:
        """Computes the masks of all conditions of each image.

        Args:
            activations: outputs of blocks of the tower (B, N, D), from the first to the last; the
                last `rows * columns` tokens are patches.
            conditions: embeddings of prompts (B, M, E).
            grid: rows and columns of patches.

        Returns:
            Logits (B, M, rows * patch_size, columns * patch_size), float32.
        """
        x = self.states(activations, conditions)[-1]
        x = x[:, x.shape[1] - grid[0] * grid[1] :].reshape(len(x), *grid, -1)
        if self.refined:
            x = jax.nn.relu(self.enlarge(jax.nn.relu(self.convolution(x))))
        logits = self.output(x)[..., 0]
        return logits.reshape(*conditions.shape[:2], *logits.shape[1:])

    def states(
        self,
        activations: Sequence[Float[Array, "batch tokens dim"]],
        conditions: Float[Array, "batch prompts condition"],
    ) -> list[Float[Array, "rows tokens reduced"]]:
        """Computes the outputs of the blocks (B M, N, R), compute type; see `__call__`."""
        prompts = conditions.shape[1]
        flat = conditions.reshape(-1, conditions.shape[-1])
        scale, shift = self.film_scale(flat)[:, None], self.film_shift(flat)[:, None]
        graphdef, params = nnx.split(self.blocks)
        states: list[jax.Array] = []
        layers = unstack(params, self.depth)
        for i, (activation, own) in enumerate(zip(reversed(activations), layers, strict=True)):
            layer = nnx.merge(graphdef, own)
            x = jnp.repeat(layer.reduce(activation), prompts, axis=0)
            x = x + states[-1] if states else x
            if i == self.condition_block:
                x = scale * x + shift
            x = layer.block(constrain(x, "batch", "length", "embed"), None)
            states.append(x)
        return states
