"""ResNet v1.5 (He et al. 2016, "Deep Residual Learning", with the stride in the 3x3 convolution).

The bottlenecks and their stages serve CLIP's variant too, see `clip_resnet.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError, lookup
from vit_jax.models.layers.batch_norm import BatchNorm
from vit_jax.models.layers.parameters import Initializer, LayersAbove, check_layers, metadata
from vit_jax.models.layers.stacking import REMAT_POLICIES, stack_blocks
from vit_jax.models.partitioning import constrain

NUM_STAGES = 4
# Output channels of a bottleneck over its inner ones.
EXPANSION = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Architecture of a ResNet v1.5 with bottlenecks.

    Attributes:
        image_size: side of the training images, px; any other size runs as well.
        depths: bottlenecks of each of the four stages.
        width: channels of the stem and inner channels of the first stage; doubles with each stage.
        num_classes: outputs of the linear head; 0 for a tower without one.
    """

    image_size: int = 224
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_classes: int = 0

    def make(self, **execution: Any) -> "ResNet":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `ResNet`.
        """
        return ResNet(self, **execution)

    def __post_init__(self) -> None:
        check_depths(self.depths)


@dataclasses.dataclass(frozen=True)
class BottleneckStyle:
    """What sets the two kinds of network apart.

    Attributes:
        antialias: whether an average pool halves the resolution (CLIP) or a stride does.
        kernel_init: of all convolutions.
    """

    antialias: bool
    kernel_init: Initializer


# He et al. 2015, "Delving Deep into Rectifiers", scaled by the outputs as in torchvision and timm.
RESNET_STYLE = BottleneckStyle(
    antialias=False, kernel_init=initializers.variance_scaling(2.0, "fan_out", "normal")
)


def check_depths(depths: Sequence[int]) -> None:
    """Refuses depths that are not four positive numbers."""
    if len(depths) != NUM_STAGES or min(depths) < 1:
        raise UserError(f"depths={tuple(depths)}: expected {NUM_STAGES} positive numbers")


def convolution(
    in_channels: int,
    out_channels: int,
    size: int,
    stride: int = 1,
    *,
    kernel_init: Initializer,
    dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Convolution without bias, padded evenly on both sides as torch does (SAME is not)."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=kernel_init,
        kernel_metadata=metadata("kernel_h", "kernel_w", "channels", "embed"),
        dtype=dtype,
        rngs=rngs,
    )


def average_pool(x: jax.Array, size: int) -> jax.Array:
    """Means of `size` x `size` squares: (B, H, W, C) to (B, H / size, W / size, C)."""
    return x if size == 1 else nnx.avg_pool(x, (size, size), strides=(size, size))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, each normalised, around a shortcut."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        style: BottleneckStyle,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
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

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        y = jax.nn.relu(self.norm2(self.conv2(y), train=train))
        y = self.norm3(self.conv3(average_pool(y, self.pool)), train=train)
        if self.has_shortcut:
            x = self.shortcut_norm(self.shortcut_conv(average_pool(x, self.pool)), train=train)
        return constrain(jax.nn.relu(x + y), "batch", None, None, None)


class Stage(nnx.Module):
    """Bottlenecks of one resolution: the first one changes shape, the rest are equal and stacked.

    With `scan` the rest is traced once whatever the depth; without it they are unrolled. Both
    compute the same from the same parameters.
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
    ):
        self.num_rest, self.scan = depth - 1, scan
        if remat == "mlp":
            raise UserError("a ResNet has no MLP: set config.compute.remat to none, dots or full")
        self.remat_policy = lookup(REMAT_POLICIES, remat, "remat policy")
        self.first = Bottleneck(in_channels, width, stride, style, dtype=dtype, rngs=rngs)

        def make_block(key: jax.Array) -> Bottleneck:
            return Bottleneck(EXPANSION * width, width, 1, style, dtype=dtype, rngs=nnx.Rngs(key))

        if self.num_rest:
            self.rest = stack_blocks(make_block, jax.random.split(rngs.params(), self.num_rest))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        apply_first, variables = self._split(self.first, train, prevent_cse=True)
        x, statistics = apply_first(x, variables)
        if train:
            nnx.update(self.first, statistics)
        if not self.num_rest:
            return x
        apply_block, variables = self._split(self.rest, train, prevent_cse=not self.scan)
        if self.scan:
            x, statistics = jax.lax.scan(apply_block, x, variables)
        else:
            outputs = []
            for i in range(self.num_rest):
                x, output = apply_block(x, jax.tree.map(lambda leaf: leaf[i], variables))  # noqa: B023
                outputs.append(output)
            statistics = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
        if train:
            nnx.update(self.rest, statistics)
        return x

    def _split(
        self, block: Bottleneck, train: bool, *, prevent_cse: bool
    ) -> tuple[Callable[..., Any], nnx.State]:
        """A block as a pure function (x, variables) -> (x, new statistics), and its variables.

        The statistics are None in evaluation. `prevent_cse` keeps XLA from undoing the
        rematerialisation, which within a scan the loop already does.
        """
        graphdef, variables = nnx.split(block)

        def apply_block(x: jax.Array, variables: nnx.State) -> tuple[jax.Array, Any]:
            block = nnx.merge(graphdef, variables)
            x = block(x, train=train)
            return x, (nnx.state(block, nnx.BatchStat) if train else None)

        if self.remat_policy is not None:
            apply_block = jax.checkpoint(
                apply_block, policy=self.remat_policy, prevent_cse=prevent_cse
            )
        return apply_block, variables


class StagedResNet(nnx.Module):
    """A stem and four stages; all but the first halve the resolution and double the channels.

    Subclasses make the stem and what follows the last stage.
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
    ):
        """Builds the stages.

        Args:
            width: channels of the stem, and inner channels of the first stage.
            depths: bottlenecks of each stage.
            style: of the bottlenecks.
            scan: see `Stage`.
            remat: a key of `layers.REMAT_POLICIES`.
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

    def features(self, images: jax.Array, layers: Sequence[int]) -> list[jax.Array]:
        """Outputs of the named stages: [(B, H / 2^(i + 2), W / 2^(i + 2), 4 width 2^i), ...].

        Negative numbers count from the last stage.

        Raises:
            UserError: a stage that does not exist.
        """
        check_layers(layers, NUM_STAGES, "stages")
        outputs = self._forward(images, train=False)
        return [outputs[layer] for layer in layers]

    def layers_above(self) -> LayersAbove:
        """Bottlenecks between each part and the output, what follows them counting as one."""
        above = sum(self.depths)
        parts: LayersAbove = {name: above + 1 for name in vars(self) if name.startswith("stem")}
        for i, depth in enumerate(self.depths):
            parts[f"stage{i}/first"] = above
            parts[f"stage{i}/rest"] = range(above - 1, above - depth, -1)
            above -= depth
        return parts

    def _forward(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """Outputs of all stages."""
        x = self._stem(images, train=train)
        outputs = []
        for i in range(NUM_STAGES):
            x = getattr(self, f"stage{i}")(x, train=train)
            outputs.append(x)
        return outputs

    def _stem(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images (B, H, W, 3) to (B, H / 4, W / 4, width)."""
        raise NotImplementedError


class ResNet(StagedResNet):
    """Images (B, H, W, 3) to features (B, 32 width), or to logits (B, num_classes) with a head."""

    def __init__(
        self,
        config: ResNetConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ):
        super().__init__(
            config.width,
            config.depths,
            RESNET_STYLE,
            scan=scan,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.config, self.dtype = config, dtype
        self.stem_conv = convolution(
            3, config.width, 7, 2, kernel_init=RESNET_STYLE.kernel_init, dtype=dtype, rngs=rngs
        )
        self.stem_norm = BatchNorm(config.width, dtype=dtype)
        if config.num_classes:
            self.head = nnx.Linear(
                self.embed_dim,
                config.num_classes,
                kernel_init=initializers.normal(0.01),
                kernel_metadata=metadata("embed", "classes"),
                bias_metadata=metadata("classes", decay=False),
                rngs=rngs,
            )

    @property
    def embed_dim(self) -> int:
        """Width of the pooled features."""
        return EXPANSION * self.config.width << (NUM_STAGES - 1)

    def __call__(self, images: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Logits (B, num_classes), float32, or pooled features without a head."""
        features = self.encode_image(images, rng=rng)
        if not self.config.num_classes:
            return features
        return self.head(features.astype(jnp.float32))

    def encode_image(self, images: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Pooled features.

        Args:
            images: (B, H, W, 3), normalised; any H and W.
            rng: None for evaluation; a key, of which nothing is drawn, for training: batch
                statistics, and an update of the running ones.

        Returns:
            (B, 32 width), compute type.
        """
        return jnp.mean(self._forward(images, train=rng is not None)[-1], axis=(1, 2))

    def _stem(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self.stem_conv(images.astype(self.dtype))
        x = jax.nn.relu(self.stem_norm(x, train=train))
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
