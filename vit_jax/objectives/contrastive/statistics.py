"""What the two contrastive losses do with one tile of logits; `contrastive_ring.py` does the rest.

A tile holds the logits of some images (rows) against some texts (columns): (rows, columns) in
float32. Statistics have one number per row or per column, float32.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Tree = Any
# Stands in for minus infinity, whose differences are NaN.
LOWEST = float(jnp.finfo(jnp.float32).min)


class TileMask(NamedTuple):
    """Which entries of a tile of logits are what. None where it holds for the whole tile.

    Attributes:
        positive: (tile, tile) bool, the matching pairs; None for no pair.
        real: (tile, tile) bool, the entries that are not padding; None for all.
    """

    positive: jax.Array | None
    real: jax.Array | None


class Kind(Protocol):
    """How a kind of loss folds tiles of logits into statistics, and what comes of them."""

    summands: int  # the loss is the sum of what rows and columns hold, over summands * N

    def start(self, shape: tuple[int, ...]) -> tuple[Tree, Tree]:
        """Statistics of rows and of columns that have met nothing."""

    def fold(
        self, logits: jax.Array, place: TileMask, row: Tree, column: Tree
    ) -> tuple[Tree, Tree]:
        """Adds a tile of logits to the statistics of its rows and columns."""

    def merge(self, a: Tree, b: Tree) -> Tree:
        """Joins the statistics that two devices have of the same columns."""

    def finish(self, row: Tree, column: Tree) -> tuple[dict[str, jax.Array], tuple[Tree, Tree]]:
        """Per pair the loss and metrics; and what the backward pass needs of rows and columns."""

    def slope(self, logits: jax.Array, place: TileMask, row: Tree, column: Tree) -> jax.Array:
        """Derivative of the sum of all summands by each logit of a tile."""


class Sums(NamedTuple):
    """Running softmax statistics of some rows or columns, each of their shape, float32.

    Attributes:
        maximum: largest logit so far.
        total: sum of `exp(logit - maximum)` so far.
        hardest_negative: largest logit of a negative so far.
    """

    maximum: jax.Array
    total: jax.Array
    hardest_negative: jax.Array


class LogSumExp(NamedTuple):
    """A log-sum-exp, `maximum + log_total`. Added up, it would round to the scale of the logits."""

    maximum: jax.Array
    log_total: jax.Array

    def log_share(self, logits: jax.Array, axis: int) -> jax.Array:
        """Log-softmax of logits whose rows (axis 1) or columns (axis 0) have these sums."""
        return (logits - jnp.expand_dims(self.maximum, axis)) - jnp.expand_dims(
            self.log_total, axis
        )


class Softmax:
    """Symmetric InfoNCE."""

    summands = 2

    def start(self, shape: tuple[int, ...]) -> tuple[Tree, Tree]:
        lowest, zero = jnp.full(shape, LOWEST, jnp.float32), jnp.zeros(shape, jnp.float32)
        sums = Sums(lowest, zero, lowest)
        return (sums, zero), sums

    def fold(
        self, logits: jax.Array, place: TileMask, row: Tree, column: Tree
    ) -> tuple[Tree, Tree]:
        row_sums, positive = row
        if place.real is not None:
            logits = jnp.where(place.real, logits, LOWEST)
        if place.positive is not None:
            # Read off the tile, since a product of its own would round differently, and the
            # difference to the maximum would be lost where the positive is the maximum.
            positive = positive + jnp.where(place.positive, logits, 0).sum(1)
        row_sums = self.merge(row_sums, self._sums(logits, place, axis=1))
        return (row_sums, positive), self.merge(column, self._sums(logits, place, axis=0))

    def _sums(self, logits: jax.Array, place: TileMask, axis: int) -> Sums:
        maximum = logits.max(axis)
        hardest_negative = maximum
        if place.positive is not None:
            hardest_negative = jnp.where(place.positive, LOWEST, logits).max(axis)
        return Sums(
            maximum, jnp.exp(logits - jnp.expand_dims(maximum, axis)).sum(axis), hardest_negative
        )

    def merge(self, a: Sums, b: Sums) -> Sums:
        maximum = jnp.maximum(a.maximum, b.maximum)
        total = a.total * jnp.exp(a.maximum - maximum) + b.total * jnp.exp(b.maximum - maximum)
        return Sums(maximum, total, jnp.maximum(a.hardest_negative, b.hardest_negative))

    def finish(self, row: Tree, column: Tree) -> tuple[dict[str, jax.Array], tuple[Tree, Tree]]:
        row_sums, positive = row
        saved = tuple(LogSumExp(s.maximum, jnp.log(s.total)) for s in (row_sums, column))
        entropies = [(s.maximum - positive) + s.log_total for s in saved]
        pairs = {
            "loss": (entropies[0] + entropies[1]) / self.summands,
            "image_to_text_accuracy": positive > row_sums.hardest_negative,
            "text_to_image_accuracy": positive > column.hardest_negative,
        }
        return pairs, (saved[0], saved[1])

    def slope(self, logits: jax.Array, place: TileMask, row: Tree, column: Tree) -> jax.Array:
        shares = row.log_share(logits, axis=1), column.log_share(logits, axis=0)
        slope = jnp.exp(shares[0]) + jnp.exp(shares[1])
        if place.positive is None:
            return slope
        return jnp.where(place.positive, jnp.expm1(shares[0]) + jnp.expm1(shares[1]), slope)


class Sigmoid:
    """Pairwise sigmoid loss. Its only statistic is each row's loss; columns need none."""

    summands = 1

    def start(self, shape: tuple[int, ...]) -> tuple[Tree, Tree]:
        return jnp.zeros(shape, jnp.float32), ()

    def fold(
        self, logits: jax.Array, place: TileMask, row: Tree, column: Tree
    ) -> tuple[Tree, Tree]:
        if place.positive is not None:
            logits = jnp.where(place.positive, -logits, logits)
        loss = jax.nn.softplus(logits)
        if place.real is not None:
            loss = jnp.where(place.real, loss, 0)
        return row + loss.sum(1), ()

    def merge(self, a: Tree, b: Tree) -> Tree:
        return ()

    def finish(self, row: Tree, column: Tree) -> tuple[dict[str, jax.Array], tuple[Tree, Tree]]:
        return {"loss": row}, ((), ())

    def slope(self, logits: jax.Array, place: TileMask, row: Tree, column: Tree) -> jax.Array:
        slope = jax.nn.sigmoid(logits)
        if place.positive is None:
            return slope
        return jnp.where(place.positive, -jax.nn.sigmoid(-logits), slope)


KINDS: dict[str, Kind] = {"softmax": Softmax(), "sigmoid": Sigmoid()}
