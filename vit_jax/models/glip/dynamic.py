"""Dynamic head (Dai et al. 2021, "Dynamic Head: Unifying Object Detection Heads with Attentions").

A block attends to places by modulated deformable convolutions, to levels by one factor per level,
and to tasks by a ReLU whose slopes and intercepts depend on the image (Chen et al. 2020, "Dynamic
ReLU").
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vit_jax.models.layers.convolution import convolution
from vit_jax.models.layers.grids import resize_grid
from vit_jax.models.layers.heads import linear_layer
from vit_jax.models.layers.norm import group_norm
from vit_jax.models.layers.parameters import TORCH_INIT
from vit_jax.models.ops.deform_conv import deform_conv2d
from vit_jax.models.sizes import Size

NUM_GROUPS = 16
_SIDE = 3  # of the deformable kernels
_TAPS = _SIDE * _SIDE
_SQUEEZE = 4  # reduction within the dynamic ReLU
_NORMAL = initializers.normal(0.01)

Map = Float[Array, "batch _rows _columns width"]


class Taps:
    """Offsets and modulation of the taps of deformable convolutions, computed from one level.

    The same are used for the convolutions of the level itself, of the finer and of the coarser one.
    """

    def __init__(self, computed: Float[Array, "batch rows columns channels"]) -> None:
        """Takes the output of a convolution: 2 offsets per tap, then one logit per tap."""
        self._planes = jnp.moveaxis(computed.astype(jnp.float32), -1, 1)
        self._size = computed.shape[1:3]

    def at(self, size: Size) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Offsets (B, h, w, taps, 2) and modulation (B, h, w, taps) for an output of a size.

        For the coarser level the output is smaller than the level that the taps come from. The
        kernel of the original code, with which the published weights were trained, then reads the
        planes of the larger size as if they had the smaller one, from their beginning. The same is
        done here; resizing them gives other results.
        """
        offsets = self._read(self._planes[:, : 2 * _TAPS], size)
        offsets = jnp.moveaxis(offsets, 1, -1)
        logits = jnp.moveaxis(self._read(self._planes[:, 2 * _TAPS :], size), 1, -1)
        return offsets.reshape(*offsets.shape[:3], _TAPS, 2), jax.nn.sigmoid(logits)

    def _read(self, planes: jax.Array, size: Size) -> jax.Array:
        if size == self._size:
            return planes
        batch, count = planes.shape[:2]
        flat = planes.reshape(batch, -1)[:, : count * size[0] * size[1]]
        return flat.reshape(batch, count, *size)


class DeformableConv(nnx.Module):
    """Modulated deformable convolution of 3 x 3 and GroupNorm."""

    def __init__(self, width: int, stride: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layers.

        Args:
            width: number of features D, a multiple of 16.
            stride: distance of neighbouring outputs, in cells.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.stride, self.dtype = stride, dtype
        self.conv = convolution(
            width,
            width,
            _SIDE,
            use_bias=True,
            kernel_init=TORCH_INIT,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = group_norm(width, NUM_GROUPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Map, taps: Taps) -> Map:
        """Applies the layers to a level (B, h, w, D)."""
        size = (-(-x.shape[1] // self.stride), -(-x.shape[2] // self.stride))
        kernel, bias = self.conv.kernel[...], self.conv.bias
        assert bias is not None
        x = deform_conv2d(
            x.astype(self.dtype),
            kernel,
            *taps.at(size),
            stride=self.stride,
            padding=_SIDE // 2,
        )
        return self.norm(x + bias[...].astype(self.dtype))


class DynamicReLU(nnx.Module):
    """Larger of two linear functions per channel, whose coefficients depend on the mean."""

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layers.

        Args:
            width: number of features D.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        squeezed = width // _SQUEEZE
        self.fc1 = linear_layer(width, squeezed, ("embed", "mlp"), TORCH_INIT, dtype, rngs)
        self.fc2 = linear_layer(squeezed, 4 * width, ("mlp", "embed"), TORCH_INIT, dtype, rngs)

    def __call__(self, x: Map) -> Map:
        """Applies the activation to a map (B, h, w, D)."""
        found = jax.nn.relu(self.fc1(jnp.mean(x, axis=(1, 2))))
        found = jax.nn.hard_sigmoid(self.fc2(found))[:, None, None] - 0.5
        slope1, intercept1, slope2, intercept2 = jnp.split(found, 4, axis=-1)
        return jnp.maximum(x * (2 * slope1 + 1) + intercept1, x * 2 * slope2 + intercept2)


class DynamicBlock(nnx.Module):
    """Attention to places, levels and tasks; each level also reads its two neighbours."""

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layers.

        Args:
            width: number of features D, a multiple of 16.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        conv = functools.partial(convolution, width, use_bias=True, rngs=rngs)
        self.taps = conv(3 * _TAPS, _SIDE, kernel_init=TORCH_INIT, dtype=jnp.float32)
        self.coarser = DeformableConv(width, 1, **execution)
        self.same = DeformableConv(width, 1, **execution)
        self.finer = DeformableConv(width, 2, **execution)
        self.level_weight = conv(1, 1, kernel_init=_NORMAL, dtype=dtype)
        self.activation = DynamicReLU(width, **execution)

    def __call__(self, levels: Sequence[Map]) -> list[Map]:
        """Applies the block to levels (B, h, w, D), from fine to coarse."""
        return [self.activation(self._merge(levels, i)) for i in range(len(levels))]

    def _merge(self, levels: Sequence[Map], i: int) -> Map:
        """Mean of what a level and its neighbours contribute."""
        taps = Taps(self.taps(levels[i]))
        parts = [self.same(levels[i], taps)]
        if i > 0:
            parts.append(self.finer(levels[i - 1], taps))
        if i < len(levels) - 1:
            coarse = self.coarser(levels[i + 1], taps)
            parts.append(_enlarge(coarse, (levels[i].shape[1], levels[i].shape[2])))
        weighted = [part * self._weight(part) for part in parts]
        return sum(weighted[1:], weighted[0]) / len(parts)

    def _weight(self, x: Map) -> Float[Array, "batch 1 1 1"]:
        pooled = self.level_weight(jnp.mean(x, axis=(1, 2), keepdims=True))
        return jax.nn.hard_sigmoid(jax.nn.relu(pooled))


def _enlarge(x: Map, size: Size) -> Map:
    """Bilinear interpolation between the centers of the corners' cells."""
    resize = jax.vmap(lambda one: resize_grid(one, size, "bilinear_corners"))
    return resize(x).astype(x.dtype)
