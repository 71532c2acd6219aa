"""Bottlenecks and stages of a ResNet v1.5, and of CLIP's variant (`clip_resnet`)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.errors import UserError, lookup
from vit_jax.models.layers.batch_norm import BatchNorm
from vit_jax.models.layers.convolution import convolution
from vit_jax.models.layers.parameters import Initializer, LayersAbove, check_layers
from vit_jax.models.layers.stacking import (
    REMAT_POLICIES,
    apply_stack,
    rematerialize,
    stack_blocks,
)
from vit_jax.models.partitioning import constrain

NUM_STAGES = 4
# Output channels of a bottleneck divided by its inner ones.
EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class BottleneckStyle:
    """Differences between the two kinds of network.

    Attributes:
        antialias: whether an average pool (CLIP) or a stride halves the resolution.
        kernel_init: initializer of all convolutions.
    """

    antialias: bool
    kernel_init: Initializer


def check_depths(depths: Sequence[int]) -> None:
    """Checks that the depths are four positive numbers.

    Args:
        depths: number of bottlenecks of each stage.

    Raises:
        UserError: anything else.
    """
    if len(depths) != NUM_STAGES or min(depths) < 1:
        raise UserError(f"depths={tuple(depths)}: expected {NUM_STAGES} positive numbers")


def average_pool(
    x: Float[Array, "batch rows columns channels"], size: int
) -> Float[Array, "batch _rows _columns channels"]:
    """Averages squares of `size` x `size` positions: (B, H, W, C) to (B, H / size, W / size, C)."""
    return x if size == 1 else nnx.avg_pool(x, (size, size), strides=(size, size))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with norms, and a shortcut (He et al. 2016, figure 5)."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        style: BottleneckStyle,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the block.

        Args:
            in_channels: number of input channels.
            width: inner channels.
            stride: factor by which the resolution shrinks.
            style: kind of network.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        conv = functools.partial(convolution, kernel_init=style.kernel_init, dtype=dtype, rngs=rngs)
        out_channels = EXPANSION * width
        self.pool, stride = (stride, 1) if style.antialias else (1, stride)
        self.conv1 = conv(in_channels, width, 1)
        self.norm1 = BatchNorm(width, dtype=dtype)
        self.conv2 = conv(width, width, 3, stride)
        self.norm2 = BatchNorm(width, dtype=dtype)
        self.conv3 = conv(width, out_channels, 1)
        # A block starts as the identity (Goyal et al. 2017, section 5.1).
        self.norm3 = BatchNorm(out_channels, initial_scale=0.0, dtype=dtype)
        self.has_shortcut = in_channels != out_channels or stride * self.pool > 1
        if self.has_shortcut:
            self.shortcut_conv = conv(in_channels, out_channels, 1, stride)
            self.shortcut_norm = BatchNorm(out_channels, dtype=dtype)

    def __call__(
        self, x: Float[Array, "batch rows columns channels"], *, train: bool
    ) -> Float[Array, "batch _rows _columns _channels"]:
        """Applies the block.

        Args:
            x: (B, H, W, C).
            train: whether batch norms use the statistics of the batch and update their averages.
        """
        y = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        y = jax.nn.relu(self.norm2(self.conv2(y), train=train))
        y = self.norm3(self.conv3(average_pool(y, self.pool)), train=train)
        if self.has_shortcut:
            x = self.shortcut_norm(self.shortcut_conv(average_pool(x, self.pool)), train=train)
        return constrain(jax.nn.relu(x + y), "batch", None, None, None)


class Stage(nnx.Module):
    """Bottlenecks of one resolution: the first changes the shape, the rest are equal and stacked.

    With `scan` the rest is traced once regardless of the depth; without it the blocks are unrolled.
    Both compute the same from the same parameters.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        depth: int,
        stride: int,
        style: BottleneckStyle,
        *,
        scan: bool,
        remat: str,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the stage.

        Args:
            in_channels: number of input channels.
            width: inner channels of the bottlenecks.
            depth: number of bottlenecks.
            stride: factor by which the first bottleneck shrinks the resolution.
            style: kind of network.
            scan: whether to scan the equal bottlenecks.
            remat: key of `layers.stacking.REMAT_POLICIES`, except "mlp".
            dtype: compute type.
            rngs: source of the parameters' keys.

        Raises:
            UserError: `remat` is "mlp" or unknown.
        """
        self.num_rest, self.scan = depth - 1, scan
        if remat == "mlp":
            raise UserError("a ResNet has no MLP: set config.compute.remat to none, dots or full")
        self.remat_policy = lookup(REMAT_POLICIES, remat, "remat policy")
        self.first = Bottleneck(in_channels, width, stride, style, dtype=dtype, rngs=rngs)

        def make_block(rngs: nnx.Rngs) -> Bottleneck:
            return Bottleneck(EXPANSION * width, width, 1, style, dtype=dtype, rngs=rngs)

        if self.num_rest:
            self.rest = stack_blocks(make_block, jax.random.split(rngs.params(), self.num_rest))

    def __call__(
        self, x: Float[Array, "batch rows columns channels"], *, train: bool
    ) -> Float[Array, "batch _rows _columns _channels"]:
        """Applies the stage.

        Args:
            x: output of the stage before (B, H, W, C).
            train: whether batch norms use the statistics of the batch and update their averages.
        """
        apply_first, variables = self._split(self.first, train, scanned=False)
        x, statistics = apply_first(x, variables)
        if train:
            nnx.update(self.first, statistics)
        if not self.num_rest:
            return x
        apply_block, variables = self._split(self.rest, train, scanned=self.scan)
        x, statistics = apply_stack(apply_block, x, variables, depth=self.num_rest, scan=self.scan)
        if train:
            nnx.update(self.rest, statistics)
        return x

    def _split(
        self, block: Bottleneck, train: bool, *, scanned: bool
    ) -> tuple[Callable[..., tuple[jax.Array, Any]], Any]:
        """Splits a block into a pure function and its variables.

        The function maps (x, variables) to (x, updated statistics), or to (x, None) in evaluation.
        """
        graphdef, variables = nnx.split(block)

        def apply_block(x: jax.Array, variables: Any) -> tuple[jax.Array, Any]:
            block = nnx.merge(graphdef, variables)
            x = block(x, train=train)
            return x, (nnx.state(block, nnx.BatchStat) if train else None)

        return rematerialize(apply_block, self.remat_policy, scanned=scanned), variables


class StagedResNet(nnx.Module):
    """A stem and four stages; all except the first halve the resolution and double the channels.

    Subclasses create the stem, and what follows the last stage.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        style: BottleneckStyle,
        *,
        scan: bool,
        remat: str,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the stages.

        Args:
            width: channels of the stem, and inner channels of the first stage.
            depths: number of bottlenecks of each stage.
            style: kind of network.
            scan: whether to scan the equal bottlenecks of a stage.
            remat: key of `layers.stacking.REMAT_POLICIES`, except "mlp".
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.depths = tuple(depths)
        in_channels = width
        execution: dict[str, Any] = {"scan": scan, "remat": remat, "dtype": dtype, "rngs": rngs}
        for i, depth in enumerate(depths):
            stage = Stage(in_channels, width << i, depth, 1 if i == 0 else 2, style, **execution)
            setattr(self, f"stage{i}", stage)
            in_channels = EXPANSION * width << i

    def features(
        self, images: Float[Array, "batch height width 3"], layers: Sequence[int]
    ) -> list[Float[Array, "batch _rows _columns _channels"]]:
        """Computes the outputs of stages, up to the last one that is asked for.

        Stage i has H / 2^(i + 2) rows, W / 2^(i + 2) columns and 4 width 2^i channels.

        Args:
            images: (B, H, W, 3), normalised.
            layers: indices of stages; negative ones count from the last.

        Returns:
            One array (B, h, w, C) per index.

        Raises:
            UserError: a stage that does not exist.
        """
        check_layers(layers, NUM_STAGES, "stages")
        numbers = [layer % NUM_STAGES for layer in layers]
        outputs = self._forward(images, train=False, stages=max(numbers, default=-1) + 1)
        return [outputs[number] for number in numbers]

    def layers_above(self) -> LayersAbove:
        """Counts the bottlenecks between each part and the output; the head counts as one."""
        above = sum(self.depths)
        parts: LayersAbove = {name: above + 1 for name in vars(self) if name.startswith("stem")}
        for i, depth in enumerate(self.depths):
            parts[f"stage{i}/first"] = above
            parts[f"stage{i}/rest"] = range(above - 1, above - depth, -1)
            above -= depth
        return parts

    def _forward(
        self, images: jax.Array, *, train: bool, stages: int = NUM_STAGES
    ) -> list[jax.Array]:
        """Computes the outputs of the first stages."""
        x = self._stem(images, train=train)
        outputs = []
        for i in range(stages):
            x = getattr(self, f"stage{i}")(x, train=train)
            outputs.append(x)
        return outputs

    def _stem(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes the stem: (B, H, W, 3) to (B, H / 4, W / 4, width)."""
        raise NotImplementedError
