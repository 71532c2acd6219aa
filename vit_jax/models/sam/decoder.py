"""Mask decoder of SAM: two-way attention of prompts and image (Kirillov et al. 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float

from vit_jax.models.layers.attention import CrossAttention
from vit_jax.models.layers.convolution import Enlarging
from vit_jax.models.layers.heads import MlpHead
from vit_jax.models.layers.mlp import ACTIVATIONS, Mlp
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import metadata
from vit_jax.models.layers.stacking import stack_blocks, unstack
from vit_jax.models.partitioning import constrain

_NORMAL = initializers.normal(1.0)
_XAVIER = initializers.xavier_uniform()
FINAL_EPSILON = 1e-5  # torch's default, of the norm after the last attention

Tokens = Float[Array, "batch tokens width"]
Pixels = Float[Array, "batch pixels width"]
Mask = Bool[Array, "batch 1 1 tokens"]


class TwoWayBlock(nnx.Module):
    """Tokens attend to each other and to the image; then the image attends to the tokens."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        norm_epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the block.

        Args:
            width: number of features C. Attention between tokens and image has half as many.
            num_heads: attention heads; divides half of C.
            mlp_dim: hidden units of the MLP.
            norm_epsilon: epsilon of LayerNorm.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        attention: dict[str, Any] = {"init": _XAVIER, **execution}
        norm: dict[str, Any] = {"epsilon": norm_epsilon, **execution}
        self.attention = CrossAttention(width, num_heads, **attention)
        self.norm1 = layer_norm(width, **norm)
        self.to_image = CrossAttention(width, num_heads, inner_width=width // 2, **attention)
        self.norm2 = layer_norm(width, **norm)
        self.mlp = Mlp(
            width, mlp_dim, activation="relu", in_init=_XAVIER, out_init=_XAVIER, **execution
        )
        self.norm3 = layer_norm(width, **norm)
        self.to_tokens = CrossAttention(width, num_heads, inner_width=width // 2, **attention)
        self.norm4 = layer_norm(width, **norm)

    def __call__(
        self,
        tokens: Tokens,
        image: Pixels,
        positions: Tokens,
        image_positions: Float[Array, "1 pixels width"],
        *,
        present: Mask | None,
        first: bool,
    ) -> tuple[Tokens, Pixels]:
        """Applies the block.

        Args:
            tokens: (B, N, C).
            image: features of the image (B, h w, C).
            positions: tokens as they enter the first block, added to queries and keys.
            image_positions: positions of the image's features (1, h w, C).
            present: True for tokens that are attended to; None for all.
            first: whether the block is the first one, whose tokens attend to each other without
                positions and without a residual connection.

        Returns:
            Tokens and features of the image.
        """
        if first:
            tokens = self.attention(tokens, tokens, tokens, present)
        else:
            queries = tokens + positions
            tokens = tokens + self.attention(queries, queries, tokens, present)
        tokens = self.norm1(tokens)
        keys = image + image_positions
        tokens = self.norm2(tokens + self.to_image(tokens + positions, keys, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.to_tokens(keys, tokens + positions, tokens, present))
        return tokens, constrain(image, "batch", "length", "embed")


class MaskDecoder(nnx.Module):
    """Predicts masks and their quality from features of an image and tokens of prompts."""

    def __init__(
        self,
        width: int,
        *,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        num_masks: int,
        norm_epsilon: float,
        upscale_epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the decoder.

        Args:
            width: number of features C.
            depth: number of two-way blocks.
            num_heads: attention heads; divides half of C.
            mlp_dim: hidden units of the MLPs of the blocks.
            num_masks: number of masks per prompt M + 1. The first is for unambiguous prompts.
            norm_epsilon: epsilon of LayerNorm in the blocks.
            upscale_epsilon: epsilon of LayerNorm between the enlarging layers.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.depth, self.num_masks, self.dtype = depth, num_masks, dtype
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}

        def vectors(count: int) -> nnx.Param:
            value = _NORMAL(rngs.params(), (count, width))
            return nnx.Param(value, **metadata("queries", "embed", decay=False))

        self.quality_token, self.mask_tokens = vectors(1), vectors(num_masks)

        def make_block(rngs: nnx.Rngs) -> TwoWayBlock:
            return TwoWayBlock(
                width, num_heads, mlp_dim, norm_epsilon=norm_epsilon, dtype=dtype, rngs=rngs
            )

        self.blocks = stack_blocks(make_block, jax.random.split(rngs.params(), depth))
        self.to_image = CrossAttention(
            width, num_heads, inner_width=width // 2, init=_XAVIER, **execution
        )
        self.norm = layer_norm(width, epsilon=FINAL_EPSILON, **execution)
        self.upscale1 = Enlarging(width, width // 4, 2, **execution)
        self.upscale_norm = layer_norm(width // 4, epsilon=upscale_epsilon, **execution)
        self.upscale2 = Enlarging(width // 4, width // 8, 2, **execution)

        def make_head(rngs: nnx.Rngs) -> MlpHead:
            return MlpHead(width, width // 8, activation="relu", dtype=dtype, rngs=rngs)

        self.mask_heads = stack_blocks(make_head, jax.random.split(rngs.params(), num_masks))
        self.quality_head = MlpHead(width, num_masks, activation="relu", **execution)

    def __call__(
        self,
        image: Float[Array, "batch rows columns dim"],
        image_positions: Float[Array, "rows columns dim"],
        prompts: Float[Array, "batch points dim"],
        present: Bool[Array, "batch points"] | None = None,
    ) -> tuple[Float[Array, "batch masks height width"], Float[Array, "batch masks"]]:
        """Predicts the masks of prompts.

        Args:
            image: features of the image with those of a mask added, for each prompt (B, h, w, C).
            image_positions: their positions (h, w, C).
            prompts: tokens of the points of each prompt (B, N, C).
            present: tokens of points that are attended to (B, N); None for all.

        Returns:
            Logits of masks (B, M + 1, 4 h, 4 w) and their predicted IoU (B, M + 1), float32.
        """
        states = self.attend(image, image_positions, prompts, present)
        tokens, pixels = states[-1]
        masks = self._masks(tokens[:, 1 : 1 + self.num_masks], pixels.reshape(image.shape))
        return masks, self.quality_head(tokens[:, 0])

    def attend(
        self,
        image: Float[Array, "batch rows columns dim"],
        image_positions: Float[Array, "rows columns dim"],
        prompts: Float[Array, "batch points dim"],
        present: Bool[Array, "batch points"] | None = None,
    ) -> list[tuple[Tokens, Pixels]]:
        """Computes tokens and features of the image after each block and after the last norm.

        Args:
            image: see `__call__`.
            image_positions: see `__call__`.
            prompts: see `__call__`.
            present: see `__call__`.

        Returns:
            Pairs of tokens (B, 2 + M + N, C), first that of the quality and those of the masks, and
            features (B, h w, C).
        """
        batch, rows, columns, width = image.shape
        own = jnp.concatenate([self.quality_token[...], self.mask_tokens[...]])
        own = jnp.broadcast_to(own, (batch, *own.shape))
        positions = jnp.concatenate([own, prompts], axis=1).astype(self.dtype)
        pixels = image.reshape(batch, rows * columns, width).astype(self.dtype)
        places = image_positions.reshape(1, rows * columns, width).astype(self.dtype)
        if present is not None:
            present = jnp.pad(present, ((0, 0), (len(own[0]), 0)), constant_values=True)
        mask = None if present is None else present[:, None, None]
        tokens, states = positions, []
        graphdef, params = nnx.split(self.blocks)
        for i, layer in enumerate(unstack(params, self.depth)):
            block = nnx.merge(graphdef, layer)
            tokens, pixels = block(tokens, pixels, positions, places, present=mask, first=i == 0)
            states.append((tokens, pixels))
        tokens = self.norm(tokens + self.to_image(tokens + positions, pixels + places, pixels))
        return [*states, (tokens, pixels)]

    def _masks(self, tokens: jax.Array, image: jax.Array) -> jax.Array:
        """Products of the enlarged features and of vectors that each token predicts."""
        gelu = ACTIVATIONS["gelu"]
        image = gelu(self.upscale_norm(self.upscale1(image)))
        image = gelu(self.upscale2(image))
        graphdef, params = nnx.split(self.mask_heads)
        vectors = jax.vmap(lambda p, x: nnx.merge(graphdef, p)(x), in_axes=(0, 1), out_axes=1)(
            params, tokens
        )
        return jnp.einsum("bmc,bhwc->bmhw", vectors, image.astype(jnp.float32))
