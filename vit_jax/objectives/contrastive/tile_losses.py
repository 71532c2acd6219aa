"""Arithmetic of the two contrastive losses on a tile of logits, shared by all forms.

A tile holds the float32 logits (rows, columns) of some images against some texts. Its statistics,
one float32 number per row or column, are merged with those of other tiles. The form `gathered` has
a single tile.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Tree = Any
# Stands in for minus infinity, whose differences are NaN.
LOWEST = float(jnp.finfo(jnp.float32).min)


class TileMask(NamedTuple):
    """Roles of the entries of a tile.

    Attributes:
        positive: bool (rows, columns), the matching pairs; None: there are none.
        valid: bool (rows, columns), the entries that are not padding; None: all are.
    """

    positive: jax.Array | None = None
    valid: jax.Array | None = None


class PairLosses(NamedTuple):
    """Results per pair.

    Attributes:
        terms: losses (pairs,). The loss of the batch is the mean of the terms' means over pairs.
        metrics: values (pairs,) by name, whose means over pairs are metrics.
    """

    terms: tuple[jax.Array, ...]
    metrics: dict[str, jax.Array]


@runtime_checkable
class TileLoss(Protocol):
    """One of the losses. `Tree` stands for its statistics of rows or of columns."""

    num_terms: int  # number of `PairLosses.terms`

    def initial(self, shape: tuple[int, ...]) -> tuple[Tree, Tree]:
        """Statistics of rows and columns that are in no tile yet."""
        ...

    def statistics(self, logits: jax.Array, mask: TileMask) -> tuple[Tree, Tree]:
        """Statistics of the rows and the columns of a tile."""
        ...

    def merge_rows(self, a: Tree, b: Tree) -> Tree:
        """Merges the statistics of the same rows in two tiles."""
        ...

    def merge_columns(self, a: Tree, b: Tree) -> Tree:
        """Merges the statistics of the same columns in two tiles."""
        ...

    def finalize(self, rows: Tree, columns: Tree) -> tuple[PairLosses, tuple[Tree, Tree]]:
        """Results per pair, and what `logit_gradient` needs of rows and columns."""
        ...

    def logit_gradient(
        self, logits: jax.Array, mask: TileMask, rows: Tree, columns: Tree
    ) -> jax.Array:
        """Gradient (rows, columns) of the sum of all terms of all pairs."""
        ...


class Sums(NamedTuple):
    """Running softmax statistics of rows or columns, float32 arrays of one shape.

    Attributes:
        maximum: largest logit.
        total: sum of `exp(logit - maximum)`.
        hardest_negative: largest logit of a negative.
    """

    maximum: jax.Array
    total: jax.Array
    hardest_negative: jax.Array


class LogSumExp(NamedTuple):
    """A log-sum-exp in two parts, since their sum would round to the magnitude of the logits."""

    maximum: jax.Array
    log_total: jax.Array

    def log_softmax(self, logits: jax.Array, axis: int) -> jax.Array:
        """Log-softmax along rows (axis 1) or columns (axis 0) with these sums."""
        return (logits - jnp.expand_dims(self.maximum, axis)) - jnp.expand_dims(
            self.log_total, axis
        )


class Softmax:
    """Symmetric InfoNCE. Statistics of rows are (Sums, logit of the positive), of columns Sums."""

    num_terms = 2

    def initial(self, shape: tuple[int, ...]) -> tuple[Tree, Tree]:
        """See `TileLoss.initial`."""
        lowest, zero = jnp.full(shape, LOWEST, jnp.float32), jnp.zeros(shape, jnp.float32)
        sums = Sums(lowest, zero, lowest)
        return (sums, zero), sums

    def statistics(self, logits: jax.Array, mask: TileMask) -> tuple[Tree, Tree]:
        """See `TileLoss.statistics`."""
        if mask.valid is not None:
            logits = jnp.where(mask.valid, logits, LOWEST)
        # Read off the tile. A product of its own would round differently, and the difference to the
        # maximum would be lost where the positive is the maximum.
        positive = (
            jnp.zeros(logits.shape[:1], jnp.float32)
            if mask.positive is None
            else jnp.where(mask.positive, logits, 0).sum(1)
        )
        return (self._sums(logits, mask, 1), positive), self._sums(logits, mask, 0)

    def _sums(self, logits: jax.Array, mask: TileMask, axis: int) -> Sums:
        # The maximum cancels, so it needs no gradient.
        maximum = jax.lax.stop_gradient(logits.max(axis, keepdims=True))
        total = jnp.exp(logits - maximum).sum(axis)
        hardest = maximum.squeeze(axis)
        if mask.positive is not None:
            hardest = jnp.where(mask.positive, LOWEST, logits).max(axis)
        return Sums(maximum.squeeze(axis), total, jax.lax.stop_gradient(hardest))

    def merge_rows(self, a: Tree, b: Tree) -> Tree:
        """See `TileLoss.merge_rows`."""
        return self.merge_columns(a[0], b[0]), a[1] + b[1]

    def merge_columns(self, a: Sums, b: Sums) -> Sums:
        """See `TileLoss.merge_columns`."""
        maximum = jnp.maximum(a.maximum, b.maximum)
        total = a.total * jnp.exp(a.maximum - maximum) + b.total * jnp.exp(b.maximum - maximum)
        return Sums(maximum, total, jnp.maximum(a.hardest_negative, b.hardest_negative))

    def finalize(self, rows: Tree, columns: Tree) -> tuple[PairLosses, tuple[Tree, Tree]]:
        """See `TileLoss.finalize`."""
        sums, positive = rows
        saved = (
            LogSumExp(sums.maximum, jnp.log(sums.total)),
            LogSumExp(columns.maximum, jnp.log(columns.total)),
        )
        # The positive is subtracted from the maximum before the logarithm is added, which keeps a
        # small loss accurate: the two cancel exactly where the positive is the maximum.
        terms = tuple((s.maximum - positive) + s.log_total for s in saved)
        metrics = {
            "image_to_text_accuracy": positive > sums.hardest_negative,
            "text_to_image_accuracy": positive > columns.hardest_negative,
        }
        return PairLosses(terms, metrics), saved

    def logit_gradient(
        self, logits: jax.Array, mask: TileMask, rows: Tree, columns: Tree
    ) -> jax.Array:
        """See `TileLoss.logit_gradient`."""
        logs = rows.log_softmax(logits, axis=1), columns.log_softmax(logits, axis=0)
        gradient = jnp.exp(logs[0]) + jnp.exp(logs[1])
        if mask.positive is None:
            return gradient
        return jnp.where(mask.positive, jnp.expm1(logs[0]) + jnp.expm1(logs[1]), gradient)


class Sigmoid:
    """Pairwise sigmoid loss. The statistic of a row is its loss; columns have none."""

    num_terms = 1

    def initial(self, shape: tuple[int, ...]) -> tuple[Tree, Tree]:
        """See `TileLoss.initial`."""
        return jnp.zeros(shape, jnp.float32), ()

    def statistics(self, logits: jax.Array, mask: TileMask) -> tuple[Tree, Tree]:
        """See `TileLoss.statistics`."""
        if mask.positive is not None:
            logits = jnp.where(mask.positive, -logits, logits)
        losses = jax.nn.softplus(logits)
        if mask.valid is not None:
            losses = jnp.where(mask.valid, losses, 0)
        return losses.sum(1), ()

    def merge_rows(self, a: Tree, b: Tree) -> Tree:
        """See `TileLoss.merge_rows`."""
        return a + b

    def merge_columns(self, a: Tree, b: Tree) -> Tree:
        """See `TileLoss.merge_columns`."""
        return ()

    def finalize(self, rows: Tree, columns: Tree) -> tuple[PairLosses, tuple[Tree, Tree]]:
        """See `TileLoss.finalize`."""
        return PairLosses((rows,), {}), ((), ())

    def logit_gradient(
        self, logits: jax.Array, mask: TileMask, rows: Tree, columns: Tree
    ) -> jax.Array:
        """See `TileLoss.logit_gradient`."""
        gradient = jax.nn.sigmoid(logits)
        if mask.positive is None:
            return gradient
        return jnp.where(mask.positive, -jax.nn.sigmoid(-logits), gradient)


TILE_LOSSES: dict[str, TileLoss] = {"softmax": Softmax(), "sigmoid": Sigmoid()}
