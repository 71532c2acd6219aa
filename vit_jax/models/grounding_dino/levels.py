"""Feature levels of an image: maps of several resolutions, projected to one width."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models.layers.convolution import convolution
from vit_jax.models.layers.fusion import XAVIER
from vit_jax.models.layers.maps import nearest, split_maps
from vit_jax.models.layers.norm import group_norm, layer_norm
from vit_jax.models.sizes import Size

NUM_GROUPS = 32
_EPSILON = 1e-5  # of the norms


@dataclasses.dataclass(frozen=True)
class Levels:
    """Geometry of the levels, whose positions are concatenated: S of all levels.

    Attributes:
        sizes: rows and columns of each level.
        mask: whether a position belongs to the image, and not to its padding, (B, S).
        ratios: fractions of the width and of the height of each level that the image covers,
            float32 (B, L, 2).
    """

    sizes: tuple[Size, ...]
    mask: Bool[Array, "batch positions"]
    ratios: Float[Array, "batch levels 2"]

    def split(self, x: jax.Array) -> list[jax.Array]:
        """Splits an array (B, S, ...) into maps (B, h, w, ...), one per level."""
        return split_maps(x, self.sizes)

    def centers(self) -> Float[Array, "batch positions 2"]:
        """Center (x, y) of each position relative to the image, float32 (B, S, 2)."""
        found = []
        for level, (rows, columns) in enumerate(self.sizes):
            y, x = np.mgrid[:rows, :columns].astype(np.float32) + np.float32(0.5)
            grid = np.stack([x.reshape(-1), y.reshape(-1)], axis=-1)
            extent = self.ratios[:, None, level] * np.array([columns, rows], np.float32)
            found.append(grid / extent)
        return jnp.concatenate(found, axis=1)


def level_geometry(
    sizes: Sequence[Size], image_sizes: Int[Array, "batch 2"], padded: Size
) -> Levels:
    """Finds the positions of levels that belong to the images.

    A position belongs to the image if its nearest pixel does, as torch's `interpolate` chooses it.

    Args:
        sizes: rows and columns of each level.
        image_sizes: height and width of each image, in the upper left corner, px (B, 2).
        padded: height and width of the input, px.
    """
    masks, ratios = [], []
    for size in sizes:
        inside = []
        for axis in (0, 1):
            inside.append(nearest(padded[axis], size[axis]) < image_sizes[:, axis, None])
        rows, columns = inside
        masks.append((rows[:, :, None] & columns[:, None]).reshape(len(rows), -1))
        ratios.append(jnp.stack([jnp.mean(columns, axis=1), jnp.mean(rows, axis=1)], axis=-1))
    return Levels(tuple(sizes), jnp.concatenate(masks, axis=1), jnp.stack(ratios, axis=1))


class LevelProjections(nnx.Module):
    """Stages of a backbone to levels (Deformable DETR, Zhu et al. 2021, appendix A.2).

    Each stage has a LayerNorm of its own and a convolution of 1 x 1. Further levels are made from
    the last one by convolutions of 3 x 3 with stride 2, the first of them from the last stage. Each
    level has a GroupNorm.
    """

    def __init__(
        self, stage_widths: Sequence[int], levels: int, width: int, *, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Builds the layers.

        Args:
            stage_widths: number of features of each stage.
            levels: number of levels, at least that of the stages.
            width: number of features of the levels D, a multiple of 32.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.stages, self.levels = len(stage_widths), levels
        for i, inputs in enumerate(stage_widths):
            norm = layer_norm(inputs, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
            setattr(self, f"stage_norm{i}", norm)
        conv = functools.partial(
            convolution, use_bias=True, kernel_init=XAVIER, dtype=dtype, rngs=rngs
        )
        widths = [*stage_widths, stage_widths[-1], *(width,) * levels]
        for i in range(levels):
            # A projection of 1 x 1, or a convolution of 3 x 3 with stride 2.
            size, stride = (1, 1) if i < self.stages else (3, 2)
            setattr(self, f"conv{i}", conv(widths[i], width, size, stride))
            setattr(self, f"norm{i}", group_norm(width, NUM_GROUPS, dtype=dtype, rngs=rngs))

    def __call__(
        self, stages: Sequence[Float[Array, "batch _rows _columns _channels"]]
    ) -> list[Float[Array, "batch _rows _columns width"]]:
        """Computes the levels (B, h, w, D) from stages (B, h, w, C)."""
        stages = [getattr(self, f"stage_norm{i}")(x) for i, x in enumerate(stages)]
        found: list[jax.Array] = []
        for i in range(self.levels):
            further = stages[-1] if i == self.stages else found[-1] if found else None
            x = stages[i] if i < self.stages else further
            found.append(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
        return found
