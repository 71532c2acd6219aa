"""Heads of OWL-ViT: classes by similarity to queries, and the boxes that patches predict."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float

from vit_jax.models.layers.heads import linear_layer, logit
from vit_jax.models.sizes import Size

_ZEROS = initializers.zeros
_EPSILON = 1e-6  # added to norms
_MARGIN = 1e-4  # keeps logarithms finite at the border of the image


class ClassHead(nnx.Module):
    """Cosine similarity to queries, shifted and scaled by each patch (Minderer et al. 2022)."""

    def __init__(
        self,
        width: int,
        embed_dim: int,
        *,
        prior: float = 0.5,
        init_scale: float = 1.0,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the head.

        Args:
            width: number of input features D.
            embed_dim: number of features of queries E.
            prior: probability of a class at a cosine of 0, at first.
            init_scale: factor of cosines, at first.
            dtype: compute type of the projection.
            rngs: source of the parameters' keys.
        """
        small = initializers.normal(1e-6)
        self.projection = linear_layer(width, embed_dim, ("embed", "joint"), small, dtype, rngs)
        # Zeros instead of scenic's normal distribution: all first logits are those of the prior.
        axes = ("embed", "outputs")
        shift = logit(prior) / init_scale
        scale = init_scale - 1 if init_scale >= 1 else math.log(init_scale)  # elu(scale) + 1
        self.shift = linear_layer(width, 1, axes, _ZEROS, jnp.float32, rngs, init_bias=shift)
        self.scale = linear_layer(width, 1, axes, _ZEROS, jnp.float32, rngs, init_bias=scale)

    def embed(self, x: Float[Array, "batch boxes dim"]) -> Float[Array, "batch boxes embed"]:
        """Computes class embeddings, which can serve as queries: float32, not normalised.

        Args:
            x: features of patches (B, Q, D).
        """
        return self.projection(x).astype(jnp.float32)

    def __call__(
        self,
        x: Float[Array, "batch boxes dim"],
        queries: Float[Array, "batch_or_1 classes embed"],
        query_mask: Bool[Array, "batch_or_1 classes"] | None,
    ) -> Float[Array, "batch boxes classes"]:
        """Computes the logits of the queries for each patch, float32.

        Args:
            x: features of patches (B, Q, D).
            queries: embeddings of classes (B or 1, C, E).
            query_mask: whether a query exists (B or 1, C); the logits of others are the lowest
                finite number. None if all exist.
        """
        embedded, queries = _normalized(self.embed(x)), _normalized(queries.astype(jnp.float32))
        queries = jnp.broadcast_to(queries, (len(x), *queries.shape[1:]))
        cosines = jnp.einsum("bqe,bce->bqc", embedded, queries)
        logits = (cosines + self.shift(x)) * (jax.nn.elu(self.scale(x)) + 1)
        if query_mask is None:
            return logits
        return jnp.where(query_mask[:, None], logits, jnp.finfo(jnp.float32).min)


def box_bias(grid: Size) -> Float[np.ndarray, "boxes 4"]:
    """Computes the box that each patch predicts by default, as logits of cxcywh.

    The centre is the lower right corner of the patch, and the size is that of the patch. Logarithms
    of numbers next to zero are computed in float32, as the weights were trained with.

    Args:
        grid: rows and columns of patches.

    Returns:
        float32 (rows * columns, 4), in the order of the patches.
    """
    rows, columns = grid
    one, margin = np.float32(1), np.float32(_MARGIN)
    y, x = np.meshgrid(
        np.arange(1, rows + 1, dtype=np.float32) / np.float32(rows),
        np.arange(1, columns + 1, dtype=np.float32) / np.float32(columns),
        indexing="ij",
    )
    parts = [
        x,
        y,
        np.full_like(x, one / np.float32(columns)),
        np.full_like(y, one / np.float32(rows)),
    ]
    values = np.stack([part.reshape(-1) for part in parts], axis=-1)
    return np.log(values + margin) - np.log1p(margin - values)


def _normalized(x: jax.Array) -> jax.Array:
    # The square root of zero has no gradient: a query of zeros, which is padding, gets none.
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return x / (norm + _EPSILON)
