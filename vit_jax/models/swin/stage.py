"""One stage of a Swin Transformer: patch merging, and blocks with windowed attention."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Key, Shaped

from vit_jax.errors import UserError, check_name, lookup
from vit_jax.models.layers.attention import heads_projection, output_projection
from vit_jax.models.layers.drop_path import drop_path
from vit_jax.models.layers.mlp import ACTIVATIONS, Mlp, mlp_branch
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import metadata, weights
from vit_jax.models.layers.stacking import (
    REMAT_POLICIES,
    apply_stack,
    rematerialize,
    stack_blocks,
    unstack,
)
from vit_jax.models.ops.attention import self_attention
from vit_jax.models.partitioning import constrain
from vit_jax.models.sizes import Size
from vit_jax.models.swin.windows import Windows, num_offsets, relative_index, resize_bias_table

# The original code truncates at -2 and 2, a hundred standard deviations away.
WEIGHT_INIT = initializers.normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Shape of one stage; see `SwinConfig` for the shared fields.

    Attributes:
        width: number of features C.
        depth: number of blocks.
        num_heads: attention heads; divides `width`.
        mlp_dim: hidden units of the MLP.
        map_size: rows and columns of the feature map of a training image.
        window_size: side of a window on a larger map.
        fit_windows: whether windows are fitted to the map of each image or to `map_size`.
        fixed_windows: whether windows are never fitted, see `SwinConfig`.
        merge: whether the stage begins with patch merging.
        activation: key of `layers.mlp.ACTIVATIONS`.
        norm_epsilon: epsilon of LayerNorm.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    map_size: Size
    window_size: int
    fit_windows: bool
    fixed_windows: bool
    merge: bool
    activation: str
    norm_epsilon: float

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ("width", "depth", "num_heads", "mlp_dim", "window_size"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name}={value} of a stage: expected a positive number")
        if self.width % self.num_heads:
            raise UserError(
                f"num_heads={self.num_heads} does not divide width={self.width} of its stage"
            )
        check_name(self.activation, ACTIVATIONS, "activation")

    @property
    def table_window(self) -> Size:
        """Window that the bias tables are made for: that of a training image."""
        if self.fixed_windows:
            return self.window_size, self.window_size
        rows, columns = self.map_size
        return min(rows, self.window_size), min(columns, self.window_size)

    def windows(self, map_size: Size, *, shifted: bool) -> Windows:
        """Describes how a feature map is cut into windows.

        Rows and columns are independent, as in timm. Along an axis that one window spans, the
        window shrinks to the map and does not shift, except with `fixed_windows`.

        Args:
            map_size: rows and columns of the feature map.
            shifted: whether the windows are those of a shifted block.
        """
        step = self.window_size // 2 if shifted else 0
        if self.fixed_windows:
            return Windows(map_size, self.table_window, shift=(step, step), pad_first=True)
        fitted = map_size if self.fit_windows else self.map_size
        height, width = (min(side, self.window_size) for side in fitted)
        down, right = (step if side > self.window_size else 0 for side in fitted)
        return Windows(map_size, size=(height, width), shift=(down, right))


class WindowAttention(nnx.Module):
    """Multi-head self-attention within windows, with a learned bias per relative position."""

    def __init__(
        self, width: int, num_heads: int, window: Size, *, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Builds the layer.

        Args:
            width: number of features C.
            num_heads: attention heads; divides C.
            window: rows and columns of the window that the bias table is made for.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.window = window
        execution: dict[str, Any] = {"init": WEIGHT_INIT, "dtype": dtype, "rngs": rngs}
        self.qkv = heads_projection(width, num_heads, parts=3, **execution)
        self.out = output_projection(width, num_heads, **execution)
        self.bias_table = nnx.Param(
            WEIGHT_INIT(rngs.params(), (num_offsets(window), num_heads)),
            **metadata("window", "heads", decay=False),
        )

    def __call__(
        self, x: Float[Array, "batch rows columns channels"], windows: Windows
    ) -> Float[Array, "batch rows columns channels"]:
        """Attends within the windows of a feature map.

        Args:
            x: feature map (B, H, W, C).
            windows: how the map is cut.
        """
        x = windows.partition(x)
        batch, count, length, width = x.shape
        projections = weights(self.qkv, x.dtype), weights(self.out, x.dtype)
        x = self_attention(x.reshape(-1, length, width), *projections, bias=self._bias(windows))
        return windows.merge(x.reshape(batch, count, length, width))

    def _bias(self, windows: Windows) -> jax.Array:
        """Biases of positions and of the shift: float32 (windows or 1, heads, h w, h w)."""
        table = resize_bias_table(self.bias_table[...], self.window, windows.size, "geometric")
        bias = jnp.moveaxis(table[relative_index(windows.size)], -1, 0)[None]
        mask = windows.mask()
        return bias if mask is None else bias + mask[:, None]


class SwinBlock(nnx.Module):
    """Pre-norm block: x + attention(norm(x)) within windows, then x + mlp(norm(x))."""

    def __init__(
        self, config: StageConfig, *, recompute_mlp: bool, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Builds the block.

        Args:
            config: shape of the stage.
            recompute_mlp: see `mlp_branch`.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        width, self.recompute_mlp = config.width, recompute_mlp
        norm = {"epsilon": config.norm_epsilon, "dtype": dtype, "rngs": rngs}
        self.norm1 = layer_norm(width, **norm)
        self.attention = WindowAttention(
            width, config.num_heads, config.table_window, dtype=dtype, rngs=rngs
        )
        self.norm2 = layer_norm(width, **norm)
        self.mlp = Mlp(
            width,
            config.mlp_dim,
            activation=config.activation,
            in_init=WEIGHT_INIT,
            out_init=WEIGHT_INIT,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "batch rows columns channels"],
        windows: Windows,
        drop_rate: Float[Array, ""],
        rng: Key[Array, ""] | None,
    ) -> Float[Array, "batch rows columns channels"]:
        """Applies the block.

        Args:
            x: feature map (B, H, W, C).
            windows: how the map is cut.
            drop_rate: stochastic depth of both branches.
            rng: PRNG key for stochastic depth, or None for evaluation.
        """
        keys = (None, None) if rng is None else jax.random.split(rng)
        x = constrain(x, "batch", "height", "width", "embed")
        x = x + drop_path(self.attention(self.norm1(x), windows), drop_rate, keys[0])
        branch, x = mlp_branch(self.norm2, self.mlp, x, recompute=self.recompute_mlp)
        x = x + drop_path(branch, drop_rate, keys[1])
        return constrain(x, "batch", "height", "width", "embed")


class PatchMerging(nnx.Module):
    """Merges squares of 2 x 2 positions into one of twice the width.

    Odd maps are padded with a row or a column of zeros.
    """

    def __init__(self, width: int, *, norm_epsilon: float, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layer.

        Args:
            width: number of input features C.
            norm_epsilon: epsilon of LayerNorm.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.norm = layer_norm(4 * width, epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
        self.reduction = nnx.Linear(
            4 * width,
            2 * width,
            use_bias=False,
            kernel_init=WEIGHT_INIT,
            kernel_metadata=metadata("merged", "embed"),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "batch rows columns channels"]
    ) -> Float[Array, "batch new_rows new_columns 2*channels"]:
        """Merges a feature map (B, H, W, C) into (B, H/2, W/2, 2C), rounded up."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # Features of (row, column) in the order (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)
        return self.reduction(self.norm(x))


class Stage(nnx.Module):
    """Patch merging, except in the first stage, and blocks; every second one has shifted windows.

    The blocks' parameters have a leading `layers` axis. With `scan` one pair of blocks is traced
    regardless of the depth; without it the blocks are unrolled. Both compute the same from the same
    parameters.
    """

    def __init__(
        self,
        config: StageConfig,
        *,
        scan: bool,
        remat: str,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the stage.

        Args:
            config: shape of the stage.
            scan: whether to scan pairs of blocks.
            remat: key of `layers.stacking.REMAT_POLICIES`.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.config, self.scan = config, scan
        self.remat_policy = lookup(REMAT_POLICIES, remat, "remat policy")
        if config.merge:
            self.merging = PatchMerging(
                config.width // 2, norm_epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs
            )

        def make_block(rngs: nnx.Rngs) -> SwinBlock:
            return SwinBlock(config, recompute_mlp=remat == "mlp", dtype=dtype, rngs=rngs)

        self.blocks = stack_blocks(make_block, jax.random.split(rngs.params(), config.depth))

    def __call__(
        self,
        x: Float[Array, "batch rows columns channels"],
        rates: Float[Array, " depth"],
        keys: Shaped[Array, " depth"] | None,
    ) -> Float[Array, "batch new_rows new_columns new_channels"]:
        """Applies the stage.

        Args:
            x: output of the stage before, or of the patch embedding for the first stage,
                (B, H, W, C).
            rates: stochastic depth of each block.
            keys: PRNG key of each block, or None for evaluation.

        Returns:
            (B, H/2, W/2, 2C), or (B, H, W, C) in the first stage.
        """
        if self.config.merge:
            x = self.merging(x)
        graphdef, params = nnx.split(self.blocks)
        apply = self._block_functions(graphdef, (x.shape[1], x.shape[2]))
        layers = (params, rates, keys)

        def apply_pair(x: jax.Array, pair: Any) -> tuple[jax.Array, None]:
            for block, layer in zip(apply, unstack(pair, 2), strict=True):
                x = block(x, layer)
            return x, None

        depth = self.config.depth
        scanned = depth // 2 * 2 if self.scan else 0
        if scanned:
            pairs = jax.tree.map(lambda p: p[:scanned].reshape(-1, 2, *p.shape[1:]), layers)
            x, _ = apply_stack(apply_pair, x, pairs, depth=scanned // 2, scan=True)
        if scanned < depth:
            rest = jax.tree.map(lambda p: p[scanned:], layers)
            for i, layer in enumerate(unstack(rest, depth - scanned)):
                x = apply[i % 2](x, layer)
        return x

    def _block_functions(self, graphdef: Any, map_size: Size) -> list[Callable[..., jax.Array]]:
        """The unshifted and the shifted block as functions of x and (parameters, rate, key)."""

        def apply_block(windows: Windows, x: jax.Array, layer: Any) -> jax.Array:
            params, rate, key = layer
            return nnx.merge(graphdef, params)(x, windows, rate, key)

        return [
            rematerialize(
                functools.partial(apply_block, self.config.windows(map_size, shifted=shifted)),
                self.remat_policy,
                scanned=self.scan,
            )
            for shifted in (False, True)
        ]
