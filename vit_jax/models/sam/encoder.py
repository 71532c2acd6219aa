"""Image encoder of SAM: a ViT with attention in windows and decomposed relative positions.

Kirillov et al. 2023, "Segment Anything", appendix A; Li et al. 2022, "Exploring Plain Vision
Transformer Backbones for Object Detection" (ViTDet).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError, check_name, lookup
from vit_jax.models.layers.attention import heads_projection, output_projection
from vit_jax.models.layers.block_init import BLOCK_INITS
from vit_jax.models.layers.convolution import convolution
from vit_jax.models.layers.drop_path import drop_path, drop_path_schedule
from vit_jax.models.layers.grids import DEFAULT_RULE, RESIZE_RULES, resize_line
from vit_jax.models.layers.mlp import ACTIVATIONS, Mlp, mlp_branch
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import LayersAbove, check_layers, metadata, weights
from vit_jax.models.layers.patch_embedding import PatchEmbedding
from vit_jax.models.layers.positions import resize_positions
from vit_jax.models.layers.stacking import (
    REMAT_POLICIES,
    apply_stack,
    rematerialize,
    stack_blocks,
)
from vit_jax.models.ops.attention import relative_attention
from vit_jax.models.ops.linear import linear
from vit_jax.models.partitioning import constrain
from vit_jax.models.sizes import Size, as_size, grid_of
from vit_jax.models.swin.windows import Windows

_ZEROS = initializers.zeros
# Weights of the convolutions behind the blocks.
_NECK_INIT = initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamEncoderConfig:
    """Architecture of the image encoder; the defaults are those of ViT-B.

    The blocks are divided into `num_global` equal groups. The last block of a group attends to the
    whole map, the others within windows.

    Attributes:
        image_size: (height, width) of the training images, px; an int for squares. Images of other
            sizes get resized positions.
        patch_size: side of a patch, px.
        width: number of features D of the blocks.
        depth: number of blocks.
        num_heads: attention heads; divides `width`.
        mlp_dim: hidden units of the MLPs.
        num_global: number of blocks that attend to the whole map; divides `depth`.
        window_size: rows and columns of a window. The map is padded with zeros, which are attended
            to.
        out_width: number of features C of the result.
        activation: key of `layers.mlp.ACTIVATIONS`.
        norm_epsilon: epsilon of LayerNorm.
        position_resize: rule by which the absolute positions are resized, a name in
            `layers.grids.RESIZE_RULES`. The relative ones are interpolated linearly.
        drop_path: stochastic depth of the last block, linear from 0 at the first.
    """

    image_size: int | tuple[int, int] = 1024
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_global: int = 4
    window_size: int = 14
    out_width: int = 256
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    position_resize: str = DEFAULT_RULE
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        """Normalises the image size and checks the fields."""
        object.__setattr__(self, "image_size", as_size(self.image_size))
        check_name(self.activation, ACTIVATIONS, "activation")
        check_name(self.position_resize, RESIZE_RULES, "position_resize")
        if self.width % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide width={self.width}")
        if self.num_global < 1 or self.depth % self.num_global or self.depth == self.num_global:
            raise UserError(
                f"num_global={self.num_global}: expected a divisor of depth={self.depth} below it"
            )
        _ = self.grid

    @property
    def grid(self) -> Size:
        """Rows and columns of patches of a training image."""
        size = as_size(self.image_size)
        return grid_of(size, self.patch_size, f"image_size={size}")

    @property
    def global_blocks(self) -> tuple[int, ...]:
        """Numbers of the blocks that attend to the whole map."""
        group = self.depth // self.num_global
        return tuple(range(group - 1, self.depth, group))

    @property
    def window_blocks(self) -> tuple[int, ...]:
        """Numbers of the blocks that attend within windows."""
        return tuple(i for i in range(self.depth) if i not in self.global_blocks)


class RelativeAttention(nnx.Module):
    """Self-attention with relative positions of rows and of columns (Li et al. 2022, "MViTv2")."""

    def __init__(
        self, width: int, num_heads: int, size: Size, *, init: Any, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Builds the layer.

        Args:
            width: number of features D.
            num_heads: attention heads; divides D.
            size: rows and columns of the map or of the window that the tables are made for.
            init: initializer of the projections.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        execution: dict[str, Any] = {"init": init, "dtype": dtype, "rngs": rngs}
        self.qkv = heads_projection(width, num_heads, parts=3, **execution)
        self.out = output_projection(width, num_heads, **execution)
        about = metadata("window", "head_dim", decay=False)
        rows, columns = (jnp.zeros((2 * n - 1, width // num_heads), jnp.float32) for n in size)
        self.rows, self.columns = nnx.Param(rows, **about), nnx.Param(columns, **about)

    def __call__(
        self, x: Float[Array, "batch length width"], size: Size
    ) -> Float[Array, "batch length width"]:
        """Attends within each map or window.

        Args:
            x: tokens (B, h w, D).
            size: rows and columns (h, w).
        """
        batch, length, width = x.shape
        # XLA:CPU contracts (B, N, D) slowly, see `ops.mlp`.
        heads = linear(x.reshape(-1, width), weights(self.qkv, x.dtype))
        heads = constrain(heads.reshape(batch, length, *heads.shape[1:]),
                          "batch", "length", None, "heads", None)  # fmt: skip
        query, key, value = jnp.moveaxis(heads, 2, 0)
        x = relative_attention(query, key, value, *self._biases(query, size))
        x = linear(x.reshape(batch * length, *x.shape[2:]), weights(self.out, x.dtype), 2)
        return x.reshape(batch, length, width)

    def _biases(self, query: jax.Array, size: Size) -> tuple[jax.Array, jax.Array]:
        """Products of each query, which is not scaled, and the offsets of rows and of columns."""
        rows, columns = size
        grid = query.reshape(len(query), rows, columns, *query.shape[2:]).astype(jnp.float32)
        by_row = jnp.einsum("bijhk,imk->bijhm", grid, _offsets(self.rows[...], rows))
        by_column = jnp.einsum("bijhk,jnk->bijhn", grid, _offsets(self.columns[...], columns))
        return by_row.reshape(*query.shape[:3], rows), by_column.reshape(*query.shape[:3], columns)


def _offsets(
    table: Float[Array, "old_offsets head_dim"], size: int
) -> Float[Array, "size size head_dim"]:
    """Embeddings of the offset of each key (second axis) from each query (first axis)."""
    table = resize_line(table, 2 * size - 1)
    position = np.arange(size)
    return table[position[:, None] - position + size - 1]


class SamBlock(nnx.Module):
    """Pre-norm block: x + attention(norm(x)), in windows or not, then x + mlp(norm(x))."""

    def __init__(
        self,
        config: SamEncoderConfig,
        size: Size,
        *,
        recompute_mlp: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the block.

        Args:
            config: architecture.
            size: rows and columns of the map or of the windows that the tables are made for.
            recompute_mlp: see `mlp_branch`.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        width, self.recompute_mlp = config.width, recompute_mlp
        init = BLOCK_INITS["normal"](width, config.depth)
        norm = {"epsilon": config.norm_epsilon, "dtype": dtype, "rngs": rngs}
        self.norm1 = layer_norm(width, **norm)
        self.attention = RelativeAttention(
            width, config.num_heads, size, init=init.qkv, dtype=dtype, rngs=rngs
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

    def __call__(
        self,
        x: Float[Array, "batch rows columns width"],
        windows: Windows,
        drop_rate: Float[Array, ""],
        rng: Key[Array, ""] | None,
    ) -> Float[Array, "batch rows columns width"]:
        """Applies the block.

        Args:
            x: feature map (B, h, w, D).
            windows: how the map is cut; a single window is the whole map.
            drop_rate: stochastic depth of both branches.
            rng: PRNG key for stochastic depth, or None for evaluation.
        """
        keys = (None, None) if rng is None else jax.random.split(rng)
        x = constrain(x, "batch", "height", "width", "embed")
        parts = windows.partition(self.norm1(x))
        branch = self.attention(parts.reshape(-1, *parts.shape[2:]), windows.size)
        x = x + drop_path(windows.merge(branch.reshape(parts.shape)), drop_rate, keys[0])
        branch, x = mlp_branch(self.norm2, self.mlp, x, recompute=self.recompute_mlp)
        x = x + drop_path(branch, drop_rate, keys[1])
        return constrain(x, "batch", "height", "width", "embed")


class SamEncoder(nnx.Module):
    """Images (B, H, W, 3) to a map of features (B, h, w, C)."""

    def __init__(
        self,
        config: SamEncoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ) -> None:
        """Builds the encoder.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            scan: whether to scan the groups of blocks or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        self.config, self.dtype, self.scan = config, dtype, scan
        self.remat_policy = lookup(REMAT_POLICIES, remat, "remat policy")
        width, out_width = config.width, config.out_width
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.patch_embed = PatchEmbedding(config.patch_size, width, **execution)
        rows, columns = config.grid
        self.positions = nnx.Param(
            jnp.zeros((rows * columns, width), jnp.float32),
            **metadata("length", "embed", decay=False),
        )

        def stack(size: Size, count: int) -> SamBlock:
            def make_block(rngs: nnx.Rngs) -> SamBlock:
                recompute = remat == "mlp"
                return SamBlock(config, size, recompute_mlp=recompute, dtype=dtype, rngs=rngs)

            return stack_blocks(make_block, jax.random.split(rngs.params(), count))

        self.window_blocks = stack((config.window_size,) * 2, len(config.window_blocks))
        self.global_blocks = stack(config.grid, len(config.global_blocks))
        norm: dict[str, Any] = {"epsilon": config.norm_epsilon, **execution}
        self.neck1 = convolution(width, out_width, 1, kernel_init=_NECK_INIT, **execution)
        self.neck_norm1 = layer_norm(out_width, **norm)
        self.neck2 = convolution(out_width, out_width, 3, kernel_init=_NECK_INIT, **execution)
        self.neck_norm2 = layer_norm(out_width, **norm)

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch rows columns channels"]:
        """Computes the features that the decoder reads.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            rng: PRNG key for stochastic depth, or None for evaluation.

        Returns:
            (B, H / patch_size, W / patch_size, out_width), compute type.
        """
        x, _ = self._blocks(images, rng, intermediates=False)
        x = self.neck_norm1(self.neck1(x))
        return self.neck_norm2(self.neck2(x))

    def features(
        self, images: Float[Array, "batch height width 3"], layers: Sequence[int]
    ) -> list[Float[Array, "batch rows columns dim"]]:
        """Computes the outputs of blocks.

        Args:
            images: (B, H, W, 3), normalised.
            layers: indices of blocks; negative ones count from the last.

        Returns:
            One array (B, h, w, D) per index.

        Raises:
            UserError: a block that does not exist.
        """
        check_layers(layers, self.config.depth)
        _, blocks = self._blocks(images, None, intermediates=True)
        return [blocks[layer] for layer in layers]

    def layers_above(self) -> LayersAbove:
        """Counts the blocks between each part and the output; the neck counts as none."""
        depth = self.config.depth
        return {
            **dict.fromkeys(("patch_embed", "positions"), depth),
            "window_blocks": tuple(depth - 1 - i for i in self.config.window_blocks),
            "global_blocks": tuple(depth - 1 - i for i in self.config.global_blocks),
        }

    def _blocks(
        self, images: jax.Array, rng: jax.Array | None, *, intermediates: bool
    ) -> tuple[jax.Array, Any]:
        """The output of the last block, and those of all blocks (depth, B, h, w, D) or None."""
        config = self.config
        x = self.patch_embed(images)
        size = (x.shape[1], x.shape[2])
        positions = resize_positions(
            self.positions[...], config.grid, size, 0, config.position_resize
        )
        x = x + positions.reshape(*size, -1).astype(x.dtype)
        groups, length = config.num_global, config.depth // config.num_global
        window = (config.window_size, config.window_size)
        in_window = self._block(self.window_blocks, Windows(size, window, (0, 0)), intermediates)
        on_map = self._block(self.global_blocks, Windows(size, size, (0, 0)), intermediates)

        def apply_group(x: jax.Array, group: Any) -> tuple[jax.Array, Any]:
            windowed, last = group
            x, outputs = apply_stack(in_window, x, windowed, depth=length - 1, scan=self.scan)
            x, output = on_map(x, last)
            return x, (jnp.concatenate([outputs, output[None]]) if intermediates else None)

        def grouped(tree: Any) -> Any:
            return jax.tree.map(lambda a: a.reshape(groups, -1, *a.shape[1:]), tree)

        schedule = grouped(drop_path_schedule(config.drop_path, config.depth, rng))
        windowed = (
            grouped(nnx.state(self.window_blocks)),
            *(jax.tree.map(lambda a: a[:, :-1], part) for part in schedule),
        )
        last = (
            nnx.state(self.global_blocks),
            *(jax.tree.map(lambda a: a[:, -1], part) for part in schedule),
        )
        x, outputs = apply_stack(apply_group, x, (windowed, last), depth=groups, scan=self.scan)
        return x, outputs.reshape(-1, *x.shape) if intermediates else None

    def _block(
        self, blocks: SamBlock, windows: Windows, intermediates: bool
    ) -> Callable[[jax.Array, Any], tuple[jax.Array, Any]]:
        """A block as a function of x and (parameters, drop rate, key)."""
        graphdef = nnx.graphdef(blocks)

        def apply(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
            params, rate, key = layer
            x = nnx.merge(graphdef, params)(x, windows, rate, key)
            return x, (x if intermediates else None)

        return rematerialize(apply, self.remat_policy, scanned=self.scan)
