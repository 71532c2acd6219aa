"""Initializers of the matrices of a transformer block, by recipe."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from vit_jax.models.layers.parameters import Initializer


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """Initializers of the four matrices of a block.

    Attributes:
        qkv: (D, 3, H, D / H).
        out: (H, D / H, D), into the residual stream.
        mlp_in: (D, mlp_dim).
        mlp_out: (mlp_dim, D), into the residual stream.
    """

    qkv: Initializer
    out: Initializer
    mlp_in: Initializer
    mlp_out: Initializer


def _clip_init(width: int, depth: int) -> BlockInit:
    """OpenAI CLIP: projections into the residual stream shrink with the depth."""
    residual = initializers.normal(width**-0.5 * (2 * depth) ** -0.5)
    return BlockInit(
        qkv=initializers.normal(width**-0.5),
        out=residual,
        mlp_in=initializers.normal((2 * width) ** -0.5),
        mlp_out=residual,
    )


def _normal_init(width: int, depth: int) -> BlockInit:
    """DeiT, Swin and timm: standard deviation 0.02.

    They truncate at +-2, which is 100 standard deviations away and cuts nothing.
    """
    del width, depth
    small = initializers.normal(0.02)
    return BlockInit(small, small, small, small)


def _xavier_init(width: int, depth: int) -> BlockInit:
    """ViT, big_vision and MAE: Glorot's uniform; q, k and v count as three (D, D) matrices."""
    del depth
    limit = math.sqrt(3.0 / width)

    def square(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return BlockInit(square, square, initializers.xavier_uniform(), initializers.xavier_uniform())


# Recipe -> function of the width and the depth of the stack.
BLOCK_INITS: dict[str, Callable[[int, int], BlockInit]] = {
    "clip": _clip_init,
    "normal": _normal_init,
    "xavier": _xavier_init,
}
