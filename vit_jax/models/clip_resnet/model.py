"""CLIP's ModifiedResNet (Radford et al. 2021, section 2.4).

A ResNet with a stem of three convolutions, average pools in place of strides (Zhang 2019) and
attention pooling.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError, check_name
from vit_jax.models.layers.attention import heads_projection, output_projection
from vit_jax.models.layers.batch_norm import BatchNorm
from vit_jax.models.layers.convolution import convolution
from vit_jax.models.layers.grids import DEFAULT_RULE, RESIZE_RULES
from vit_jax.models.layers.parameters import TORCH_INIT, metadata
from vit_jax.models.layers.positions import resize_positions
from vit_jax.models.ops.attention import attention
from vit_jax.models.resnet.blocks import (
    EXPANSION,
    NUM_STAGES,
    BottleneckStyle,
    StagedResNet,
    average_pool,
    check_depths,
)
from vit_jax.models.sizes import Size, as_size

# Pixels per position of the last stage, along each axis.
REDUCTION = 32
# OpenAI kept torch's default for convolutions.
CLIP_STYLE = BottleneckStyle(antialias=True, kernel_init=TORCH_INIT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPResNetConfig:
    """Architecture of CLIP's convolutional image tower.

    Attributes:
        image_size: (height, width) of the training images, px; an int for squares. Images of other
            sizes get resized positions in the pool.
        depths: number of bottlenecks of each of the four stages.
        width: channels of the stem and inner channels of the first stage; doubles with each stage.
        num_heads: attention heads of the pool.
        embed_dim: outputs of the pool, the size of the shared embedding space.
        position_resize: rule by which positions are resized for another grid, a name in
            `layers.grids.RESIZE_RULES`.
        pool_size: (height, width) of the images whose grid the pool has positions for, px; an int
            for squares, 0 for `image_size`. A pool over regions has another one, see `regionclip`.
    """

    image_size: int | tuple[int, int] = 224
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_heads: int = 32
    embed_dim: int = 1024
    position_resize: str = DEFAULT_RULE
    pool_size: int | tuple[int, int] = 0

    def make(self, **execution: Any) -> "CLIPResNet":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `CLIPResNet`.
        """
        return CLIPResNet(self, **execution)

    def __post_init__(self) -> None:
        """Normalises the sizes and checks the fields."""
        for name in ("image_size", "pool_size"):
            size = getattr(self, name)
            if name == "image_size" or size:
                object.__setattr__(self, name, size := as_size(size))
                if size[0] % REDUCTION or size[1] % REDUCTION:
                    raise UserError(f"{REDUCTION} does not divide {name}={size}")
        check_depths(self.depths)
        check_name(self.position_resize, RESIZE_RULES, "position_resize")
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

    @property
    def grid(self) -> Size:
        """Rows and columns that the pool has positions for."""
        height, width = as_size(self.pool_size or self.image_size)
        return height // REDUCTION, width // REDUCTION

    def adapt(self, path: str, value: jax.Array | None, source: Any) -> jax.Array | None:
        """Makes a parameter of this model from that of another configuration, for fine-tuning.

        Positions of the pool are resized to the grid of this model.

        Args:
            path: path of the parameter.
            value: parameter of the source; None if it has none at this path.
            source: config of the source.

        Returns:
            The parameter, or None if the source's own value applies.
        """
        if path != "pool/positions" or value is None or not isinstance(source, CLIPResNetConfig):
            return None
        return resize_positions(value, source.grid, self.grid, 1, source.position_resize)


class AttentionPool(nnx.Module):
    """Attention pooling whose single query is the mean of all positions.

    Keys and values are those of the mean and of all positions.
    """

    def __init__(
        self,
        grid: Size,
        width: int,
        num_heads: int,
        out_dim: int,
        *,
        position_resize: str = DEFAULT_RULE,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the pool.

        Args:
            grid: rows and columns of the last stage at the training resolution.
            width: channels of the last stage C.
            num_heads: attention heads; divides C.
            out_dim: number of pooled features.
            position_resize: rule of resizing positions, a name in `layers.grids.RESIZE_RULES`.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.grid, self.rule, self.dtype = grid, position_resize, dtype
        init = initializers.normal(width**-0.5)
        common: dict[str, Any] = {"init": init, "dtype": dtype, "rngs": rngs}
        self.positions = nnx.Param(
            init(rngs.params(), (1 + grid[0] * grid[1], width)),
            **metadata("length", "embed", decay=False),
        )
        self.query = heads_projection(width, num_heads, **common)
        self.key = heads_projection(width, num_heads, **common)
        self.value = heads_projection(width, num_heads, **common)
        self.out = output_projection(width, num_heads, out_width=out_dim, **common)

    def __call__(self, x: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch dim"]:
        """Pools a feature map.

        Args:
            x: output of the last stage (B, h, w, C); positions are resized to h x w.

        Returns:
            (B, out_dim), compute type.
        """
        batch, rows, columns, channels = x.shape
        x = x.reshape(batch, rows * columns, channels)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        grid = (rows, columns)
        positions = resize_positions(self.positions[...], self.grid, grid, 1, self.rule)
        x = x + positions.astype(self.dtype)
        pooled = attention(self.query(x[:, :1]), self.key(x), self.value(x))
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
    ) -> None:
        """Builds the model.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            scan: whether to scan the equal bottlenecks of a stage or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`, except "mlp".
        """
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
        self.pool = AttentionPool(
            config.grid,
            config.channels,
            config.num_heads,
            config.embed_dim,
            position_resize=config.position_resize,
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def embed_dim(self) -> int:
        """Number of pooled features, which is that of the shared embedding space."""
        return self.config.embed_dim

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch dim"]:
        """Computes embeddings (B, embed_dim), see `encode_image`."""
        return self.encode_image(images, rng=rng)

    def encode_image(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch dim"]:
        """Computes embeddings, not normalised.

        The output projection of the pool is CLIP's image projection.

        Args:
            images: (B, H, W, 3), normalised; any H and W that 32 divides.
            rng: None for evaluation. A PRNG key for training: batch norms use the statistics of the
                batch and update their averages. Nothing is drawn from the key.

        Returns:
            (B, embed_dim), compute type.
        """
        return self.pool(self._forward(images, train=rng is not None)[-1])

    def _stem(self, images: jax.Array, *, train: bool) -> jax.Array:
        height, width = images.shape[1:3]
        if height % REDUCTION or width % REDUCTION:
            raise UserError(f"{REDUCTION} does not divide images of {height} x {width} px")
        x = images.astype(self.dtype)
        for conv, norm in (
            (self.stem_conv1, self.stem_norm1),
            (self.stem_conv2, self.stem_norm2),
            (self.stem_conv3, self.stem_norm3),
        ):
            x = jax.nn.relu(norm(conv(x), train=train))
        return average_pool(x, 2)
