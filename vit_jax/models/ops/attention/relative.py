"""Attention over a map, with a bias for the row and one for the column of each key."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.errors import lookup
from vit_jax.models import partitioning
from vit_jax.models.ops.attention.dot_product import attention, choose

Heads = Float[Array, "batch length heads head_dim"]


def relative_attention(
    query: Heads,
    key: Heads,
    value: Heads,
    by_row: Float[Array, "batch length heads rows"],
    by_column: Float[Array, "batch length heads columns"],
    *,
    implementation: str | None = None,
) -> Heads:
    """Computes softmax(query key^T / sqrt(K) + bias) value over the positions of a map.

    The bias of a query and the key in row i and column j is `by_row[i] + by_column[j]` of the query
    (decomposed relative positions, Li et al. 2022, "MViTv2", section 4.1).

    Args:
        query: (B, N, H, K) for a map of N = rows x columns positions.
        key: (B, N, H, K).
        value: (B, N, H, K).
        by_row: bias of each query for the rows of keys (B, N, H, rows), float32.
        by_column: bias of each query for the columns of keys (B, N, H, columns), float32.
        implementation: key of `RELATIVE_ATTENTION`; by default "features" on TPUs for maps that are
            too large for the kernel of whole sequences, "bias" elsewhere.

    Returns:
        (B, N, H, K), dtype of `query`.
    """
    if implementation is None:
        chosen = choose(query.shape, key.shape[1], query.dtype, masked=True)
        large = partitioning.platform() == "tpu" and chosen in ("xla", "splash")
        implementation = "features" if large else "bias"
    function = lookup(RELATIVE_ATTENTION, implementation, "implementation of relative attention")
    return function(query, key, value, by_row, by_column)


def _with_bias(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    by_row: jax.Array,
    by_column: jax.Array,
) -> jax.Array:
    """The bias as an array (B, H, N, N)."""
    rows, columns = (jnp.swapaxes(x, 1, 2) for x in (by_row, by_column))
    bias = rows[..., :, None] + columns[..., None, :]
    return attention(query, key, value, bias=bias.reshape(*rows.shape[:3], -1))


def _with_features(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    by_row: jax.Array,
    by_column: jax.Array,
) -> jax.Array:
    """The bias as further features: those of a key mark its row and its column.

    No array of N x N is in memory: a ViT-H has 1 GiB of them per block and image of 1024 px.
    """
    rows, columns, head_dim = by_row.shape[-1], by_column.shape[-1], query.shape[-1]
    width = head_dim + rows + columns
    scale = width**0.5  # by which `attention` divides
    marks = jnp.concatenate(
        [jnp.repeat(jnp.eye(rows), columns, axis=0), jnp.tile(jnp.eye(columns), (rows, 1))], axis=1
    )
    marks = jnp.broadcast_to(marks[:, None], (*key.shape[:3], rows + columns))
    query = query.astype(jnp.float32) * head_dim**-0.5
    query = jnp.concatenate([query, by_row, by_column], axis=-1) * scale
    key = jnp.concatenate([key, marks.astype(key.dtype)], axis=-1)
    padded = jnp.pad(value, ((0, 0), (0, 0), (0, 0), (0, rows + columns)))
    return attention(query.astype(value.dtype), key, padded)[..., :head_dim]


RELATIVE_ATTENTION: dict[str, Callable[..., jax.Array]] = {
    "bias": _with_bias,
    "features": _with_features,
}
