"""Deformable attention with its projections (Zhu et al. 2021, Deformable DETR, section 4.1)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vit_jax.models.grounding_dino.levels import Levels
from vit_jax.models.layers.attention import heads_projection, output_projection
from vit_jax.models.layers.parameters import Initializer, metadata
from vit_jax.models.ops.sampling import deformable_attention

_XAVIER = initializers.xavier_uniform()
_ZEROS = initializers.zeros


class DeformableAttention(nnx.Module):
    """Each query samples a few points of every level, near a reference point or within a box."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        levels: int,
        samples: int,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            width: number of features D.
            num_heads: number of heads H; divides D.
            levels: number of levels L.
            samples: points of each head on each level N.
            dtype: compute type; points and weights are float32.
            rngs: source of the parameters' keys.
        """
        self.samples = samples
        points = (num_heads, levels, samples)
        self.offsets = _points(width, (*points, 2), _spread(*points), rngs)
        self.weights = _points(width, points, _ZEROS, rngs)
        self.value = heads_projection(width, num_heads, init=_XAVIER, dtype=dtype, rngs=rngs)
        self.out = output_projection(width, num_heads, init=_XAVIER, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        queries: Float[Array, "batch queries width"],
        features: Float[Array, "batch positions width"],
        levels: Levels,
        references: Float[Array, "batch queries levels _coordinates"],
    ) -> Float[Array, "batch queries width"]:
        """Attends to the features of all levels.

        Args:
            queries: (B, Q, D).
            features: features of all levels (B, S, D); padding counts as zero.
            levels: geometry of the levels.
            references: on each level, as fractions of its width and height: points x, y (B, Q, L,
                2), or boxes center x, center y, width, height (B, Q, L, 4).
        """
        mask = levels.mask[..., None, None]
        values = self.value(features)
        values = jnp.where(mask, values, jnp.zeros((), values.dtype))
        offsets = self.offsets(queries)
        weights = self.weights(queries)
        flat = weights.reshape(*weights.shape[:3], -1)
        weights = jax.nn.softmax(flat, axis=-1).reshape(weights.shape)
        at = references[:, :, None, :, None]
        if references.shape[-1] == 2:
            cells = np.array([size[::-1] for size in levels.sizes], np.float32)
            points = at + offsets / cells[:, None]
        else:
            points = at[..., :2] + offsets / self.samples * at[..., 2:] * 0.5
        return self.out(deformable_attention(values, levels.sizes, points, weights))


def _points(
    width: int, outputs: tuple[int, ...], bias_init: Initializer, rngs: nnx.Rngs
) -> nnx.LinearGeneral:
    """A projection to numbers of each head, level and point; initially the same for all queries."""
    axes = ("heads", "levels", "samples", "coordinates")[: len(outputs)]
    return nnx.LinearGeneral(
        width,
        outputs,
        kernel_init=_ZEROS,
        bias_init=bias_init,
        kernel_metadata=metadata("embed", *axes),
        bias_metadata=metadata(*axes, decay=False),
        dtype=jnp.float32,
        rngs=rngs,
    )


def _spread(heads: int, levels: int, samples: int) -> Initializer:
    """Offsets of each head in a direction of its own, each sample further away than the last."""
    angles = 2 * np.pi * np.arange(heads) / heads
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    direction /= np.abs(direction).max(axis=-1, keepdims=True)
    offsets = direction[:, None, None] * np.arange(1, samples + 1)[:, None]
    offsets = np.broadcast_to(offsets, (heads, levels, samples, 2)).reshape(-1)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        del key, shape
        return jnp.asarray(offsets, dtype)

    return init
