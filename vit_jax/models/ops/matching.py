"""Bipartite matching of annotated boxes with the queries of a detector."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models import partitioning


def match_boxes(
    cost: Float[Array, "batch boxes queries"], valid: Bool[Array, "batch boxes"]
) -> Int[Array, "batch boxes"]:
    """Assigns each box a query of its own, at the lowest total cost (Carion et al. 2020, eq. 1).

    The Hungarian algorithm of optax runs on the devices, as a part of the step. A callback to SciPy
    would keep the step from being compiled ahead of time and from being cached, and would collect
    the costs of all hosts. Each device matches the images that it holds, without communication.

    Args:
        cost: cost of each pair, (B, N, Q). NaN and infinity count as the highest cost.
        valid: whether a box takes part, (B, N); False for padding.

    Returns:
        Query of each box, int32 (B, N); -1 for padding, and where there are more boxes than
        queries, for the boxes that the best matching leaves out. No gradient passes through it.
    """
    axis = partitioning.split_axis("batch", cost.shape[0])
    match = partitioning.per_shard(
        jax.vmap(_match_image),
        (PartitionSpec(axis, None, None), PartitionSpec(axis, None)),
        PartitionSpec(axis, None),
    )
    return match(jax.lax.stop_gradient(cost.astype(jnp.float32)), valid)


def _match_image(cost: jax.Array, valid: jax.Array) -> jax.Array:
    """Matches the boxes of one image, (N, Q) and (N,).

    Besides the queries, each box has a column of its own, which stands for no query. It costs
    padding nothing, so that padding is matched in one iteration, and other boxes more than any
    query.
    """
    count, queries = cost.shape
    finite = jnp.isfinite(cost) & valid[:, None]
    highest = 1 + jnp.max(jnp.abs(cost), where=finite, initial=0)
    cost = jnp.where(finite, cost, highest)
    unmatched = jnp.where(valid[:, None], highest, highest * (1 - jnp.eye(count)))
    row, column = optax.assignment.hungarian_algorithm(jnp.concatenate([cost, unmatched], axis=1))
    column = jnp.zeros(count, jnp.int32).at[row].set(column)
    return jnp.where(valid & (column < queries), column, -1)
