"""The vision side of Qwen-VL (Bai et al. 2023, section 2.1).

A ViT and a layer of cross-attention turn an image into 256 embeddings for the language model.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.layers.attention import CrossAttention
from vit_jax.models.layers.grids import resize_grid
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import TORCH_INIT, metadata
from vit_jax.models.layers.positions import sincos_positions
from vit_jax.models.sizes import Size
from vit_jax.models.vit.backbone import ViTReader
from vit_jax.models.vit.model import ViTConfig

# Rule by which the authors resize both tables of positions, see `layers.grids`.
POSITION_RULE = "bicubic"
NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenVLConfig:
    """Architecture of a tower with a resampler.

    Attributes:
        image: architecture of the image tower, without class token and without final norm.
        width: number of features of an embedding.
        num_heads: attention heads of the resampler.
        num_queries: number of embeddings of an image, a square number.
    """

    image: ViTConfig
    width: int = 4096
    num_heads: int = 32
    num_queries: int = 256

    def make(self, **execution: Any) -> "QwenVL":
        """Builds the module with fresh parameters; the arguments are those of `QwenVL`."""
        return QwenVL(self, **execution)

    def __post_init__(self) -> None:
        """Checks the fields."""
        found = getattr(self.image, "pool", None), getattr(self.image, "num_prefix", None)
        if found != ("none", 0):
            raise UserError(
                "Qwen-VL's tower is a ViT with pool='none' and no class token; found "
                f"{type(self.image).__name__} with {found[0]!r} and {found[1]} leading tokens"
            )
        if math.isqrt(self.num_queries) ** 2 != self.num_queries:
            raise UserError(f"num_queries={self.num_queries}: expected a square number")
        if self.width % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide width={self.width}")


class Resampler(nnx.Module):
    """Learned queries that attend to patches (Bai et al. 2023, section 2.1, "adapter")."""

    def __init__(self, config: QwenVLConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layer.

        Args:
            config: architecture.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        width, side = config.width, math.isqrt(config.num_queries)
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.dtype, self.grid = dtype, (side, side)
        self.query = nnx.Param(
            initializers.truncated_normal(0.02)(rngs.params(), (side * side, width)),
            **metadata("length", "embed", decay=False),
        )
        # Fixed, and in the files of the authors, in which they are rounded.
        self.positions = nnx.Param(
            sincos_positions(self.grid, width), **metadata("length", "embed", decay=False)
        )
        self.projection = _linear(config.image.width, width, **execution)
        self.query_norm = layer_norm(width, epsilon=NORM_EPSILON, **execution)
        self.norm = layer_norm(width, epsilon=NORM_EPSILON, **execution)
        init = initializers.xavier_uniform()
        self.attention = CrossAttention(width, config.num_heads, init=init, **execution)

    def __call__(
        self, patches: Float[Array, "batch patches dim"], grid: Size
    ) -> Float[Array, "batch queries width"]:
        """Summarises the patches of each image.

        Positions are added to queries and keys, not to values.

        Args:
            patches: (B, rows * columns, D).
            grid: rows and columns of patches.
        """
        table = jax.lax.stop_gradient(self.positions[...])
        of_patches = resize_grid(table.reshape(*self.grid, -1), grid, POSITION_RULE)
        of_patches = of_patches.reshape(-1, table.shape[-1]).astype(self.dtype)
        values = self.norm(self.projection(patches))
        query = self.query_norm(self.query[...].astype(self.dtype)) + table.astype(self.dtype)
        queries = jnp.broadcast_to(query, (len(patches), *query.shape))
        return self.attention(queries, values + of_patches, values)


class QwenVL(ViTReader):
    """Images (B, H, W, 3) to embeddings (B, num_queries, width) for the language model."""

    def __init__(
        self,
        config: QwenVLConfig,
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
            scan: whether to scan the blocks or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        self.config, width = config, config.width
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.image = config.image.make(scan=scan, remat=remat, **execution)
        self.resampler = Resampler(config, **execution)
        self.norm = layer_norm(width, epsilon=NORM_EPSILON, **execution)
        self.projection = _linear(width, width, **execution)

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch queries dim"]:
        """Computes the embeddings of images.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            rng: not used; nothing is random.

        Returns:
            (B, num_queries, width), compute type.
        """
        del rng
        size = self.config.image.patch_size
        [patches] = self.features(images, (-1,))
        grid = images.shape[1] // size, images.shape[2] // size
        return self.projection(self.norm(self.resampler(patches, grid)))


def _linear(width: int, out_width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        width,
        out_width,
        use_bias=False,
        kernel_init=TORCH_INIT,
        kernel_metadata=metadata("embed", "joint"),
        dtype=dtype,
        rngs=rngs,
    )
