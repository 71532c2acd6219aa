"""CLIP's ModifiedResNet (Radford et al. 2021, section 2.4): a ResNet with a stem of three
convolutions, average pools in place of strides (Zhang 2019) and attention pooling."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError
from vit_jax.models.layers.batch_norm import BatchNorm
from vit_jax.models.layers.parameters import metadata
from vit_jax.models.layers.positions import resize_positions
from vit_jax.models.resnet.model import (
    EXPANSION,
    NUM_STAGES,
    BottleneckStyle,
    StagedResNet,
    average_pool,
    check_depths,
    convolution,
)

# Pixels of an image, along one side, to a position of the last stage.
REDUCTION = 32
# OpenAI left the convolutions at torch's default, uniform in +-1 / sqrt(inputs).
CLIP_STYLE = BottleneckStyle(
    antialias=True, kernel_init=initializers.variance_scaling(1 / 3, "fan_in", "uniform")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPResNetConfig:
    """Architecture of CLIP's convolutional image tower.

    Attributes:
        image_size: side of the training images, px; other sizes resize the pool's positions.
        depths: bottlenecks of each of the four stages.
        width: channels of the stem and inner channels of the first stage; doubles with each stage.
        num_heads: attention heads of the pool.
        embed_dim: outputs of the pool, the size of the shared embedding space.
    """

    image_size: int = 224
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_heads: int = 32
    embed_dim: int = 1024

    def make(self, **execution: Any) -> "CLIPResNet":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `CLIPResNet`.
        """
        return CLIPResNet(self, **execution)

    def __post_init__(self) -> None:
        check_depths(self.depths)
        if self.image_size % REDUCTION:
            raise UserError(f"{REDUCTION} does not divide image_size={self.image_size}")
        if self.width % 2:
            raise UserError(f"width={self.width}: expected an even number, the stem starts at half")
        if self.channels % self.num_heads:
            raise UserError(
                f"num_heads={self.num_heads} does not divide the last stage's {self.channels} "
                "channels"
            )

    @property
    def channels(self) -> int:
        """Channels of the last stage."""
        return EXPANSION * self.width << (NUM_STAGES - 1)


class AttentionPool(nnx.Module):
    """Attention whose one query is the mean of all positions, over the positions and the mean."""

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        num_heads: int,
        out_dim: int,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Builds the pool.

        Args:
            grid: rows and columns of the last stage at the training resolution.
            width: channels of the last stage.
            num_heads: divides `width`.
            out_dim: width of the result.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.grid, self.dtype = grid, dtype
        init = initializers.normal(width**-0.5)
        head_dim = width // num_heads
        projection = functools.partial(
            nnx.LinearGeneral,
            width,
            (num_heads, head_dim),
            kernel_init=init,
            kernel_metadata=metadata("embed", "heads", "head_dim"),
            bias_metadata=metadata("heads", "head_dim", decay=False),
            dtype=dtype,
            rngs=rngs,
        )
        self.positions = nnx.Param(
            init(rngs.params(), (1 + grid[0] * grid[1], width)),
            **metadata("length", "embed", decay=False),
        )
        self.query, self.key, self.value = projection(), projection(), projection()
        self.out = nnx.LinearGeneral(
            (num_heads, head_dim),
            out_dim,
            axis=(-2, -1),
            kernel_init=init,
            kernel_metadata=metadata("heads", "head_dim", "embed"),
            bias_metadata=metadata("embed", decay=False),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools (B, h, w, C) to (B, out_dim)."""
        batch, rows, columns, channels = x.shape
        x = x.reshape(batch, rows * columns, channels)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        positions = resize_positions(self.positions[...], self.grid, (rows, columns), num_prefix=1)
        x = x + positions.astype(self.dtype)
        pooled = jax.nn.dot_product_attention(self.query(x[:, :1]), self.key(x), self.value(x))
        return self.out(pooled[:, 0])


class CLIPResNet(StagedResNet):
    """Images (B, H, W, 3) to embeddings (B, embed_dim)."""

    def __init__(
        self,
        config: CLIPResNetConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ):
        super().__init__(
            config.width,
            config.depths,
            CLIP_STYLE,
            scan=scan,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.config, self.dtype = config, dtype
        conv = functools.partial(
            convolution, kernel_init=CLIP_STYLE.kernel_init, dtype=dtype, rngs=rngs
        )
        width = config.width
        self.stem_conv1 = conv(3, width // 2, 3, 2)
        self.stem_norm1 = BatchNorm(width // 2, dtype=dtype)
        self.stem_conv2 = conv(width // 2, width // 2, 3)
        self.stem_norm2 = BatchNorm(width // 2, dtype=dtype)
        self.stem_conv3 = conv(width // 2, width, 3)
        self.stem_norm3 = BatchNorm(width, dtype=dtype)
        side = config.image_size // REDUCTION
        self.pool = AttentionPool(
            (side, side),
            config.channels,
            config.num_heads,
            config.embed_dim,
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def embed_dim(self) -> int:
        """Width of the pooled features, which is that of the shared embedding space."""
        return self.config.embed_dim

    def __call__(self, images: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Embeddings (B, embed_dim), see `encode_image`."""
        return self.encode_image(images, rng=rng)

    def encode_image(self, images: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Embeddings, not normalised; the pool's output projection is CLIP's image projection.

        Args:
            images: (B, H, W, 3), normalised; any H and W that 32 divides.
            rng: None for evaluation; a key, of which nothing is drawn, for training: batch
                statistics, and an update of the running ones.

        Returns:
            (B, embed_dim), compute type.
        """
        return self.pool(self._forward(images, train=rng is not None)[-1])

    def _stem(self, images: jax.Array, *, train: bool) -> jax.Array:
        height, width = images.shape[1:3]
        if height % REDUCTION or width % REDUCTION:
            raise UserError(f"{REDUCTION} does not divide pictures of {height} x {width} px")
        x = images.astype(self.dtype)
        for conv, norm in (
            (self.stem_conv1, self.stem_norm1),
            (self.stem_conv2, self.stem_norm2),
            (self.stem_conv3, self.stem_norm3),
        ):
            x = jax.nn.relu(norm(conv(x), train=train))
        return average_pool(x, 2)
