"""The contrastive loss without the N x N matrix: blocks of texts travel around a ring of devices.

Each device keeps its L images. The L texts of each device start at home and visit every device.
Each visit computes the L x L logits of that pairing, merges their statistics into running ones and
drops them. Statistics of images (rows) stay; statistics of texts (columns) travel, and are home
again at the end. The backward pass goes around once more: it recomputes the logits, and their
gradient from the saved statistics. Gradients of the texts travel as their statistics did.

Block-wise softmax over a ring is from Liu et al. 2023 (Ring Attention,
https://arxiv.org/abs/2310.01889, sec. 3). Its use for the contrastive loss, and cutting every visit
into tiles so that no block of logits is held, are from Cheng et al. 2024 (Inf-CL,
https://arxiv.org/abs/2410.17243, sec. 3). The sigmoid loss needs no statistics of columns (Zhai et
al. 2023, https://arxiv.org/abs/2303.15343, sec. 3.3).

Both passes are a `shard_map` of their own inside one `custom_vjp`. Nothing is differentiated
through a collective, so sums over devices are written exactly once, and mesh axes that do not split
the batch merely repeat the work.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.objectives.contrastive.logits import pair_logits, product, sum_rows_first
from vit_jax.objectives.contrastive.tile_losses import TILE_LOSSES, TileLoss, TileMask
from vit_jax.parallel.ring import DeviceRing

Tree = Any


@dataclasses.dataclass(frozen=True)
class RingLoss:
    """Static description of a loss over a ring.

    Attributes:
        loss: "softmax" or "sigmoid".
        ring: devices that the batch is split over.
        tile_size: largest side of a tile in pairs; None: whole blocks.
    """

    loss: str
    ring: DeviceRing
    tile_size: int | None

    @property
    def tile_loss(self) -> TileLoss:
        """Arithmetic of the loss on a tile."""
        return TILE_LOSSES[self.loss]

    def tiling(self, length: int) -> tuple[int, int]:
        """Number and size of the tiles of a block, chosen even to keep the padding small."""
        count = -(-length // min(self.tile_size or length, length))
        return count, -(-length // count)

    def cut(self, block: jax.Array) -> jax.Array:
        """Cuts a block (L, D) into tiles (tiles, tile, D), the last one padded with zeros."""
        count, size = self.tiling(block.shape[0])
        padded = jnp.pad(block, ((0, count * size - block.shape[0]), (0, 0)))
        return padded.reshape(count, size, -1)


class Block(NamedTuple):
    """The embeddings of one device, cut into tiles.

    Attributes:
        embeddings: (tiles, tile, D).
        saved: statistics of the forward pass, arrays (tiles, tile); () in the forward pass.
    """

    embeddings: jax.Array
    saved: Tree


# (mask, row tile, column tile, row state, column state) -> (row state, column state)
Visit = Callable[[TileMask, Block, Block, Tree, Tree], tuple[Tree, Tree]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_loss(
    static: RingLoss,
    image: Float[Array, "batch width"],
    text: Float[Array, "batch width"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
    """Loss and metrics, see `contrastive_loss`.

    Args:
        static: the loss and its devices, whose number divides the batch.
        image: image embeddings, float32 or bfloat16.
        text: text embeddings of the same dtype.
        scale: factor of the cosines.
        bias: added to every logit. It has a gradient in the sigmoid loss only.
    """
    return _forward(static, image, text, scale, bias)[0]


def _forward(
    static: RingLoss, image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Tree]:
    tile_loss, ring, batch = static.tile_loss, static.ring, image.shape[0]

    def local(
        image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> tuple[Tree, Tree]:
        def visit(
            mask: TileMask, row: Block, column: Block, row_state: Tree, column_state: Tree
        ) -> tuple[Tree, Tree]:
            logits = pair_logits(row.embeddings, column.embeddings, scale, bias)
            of_rows, of_columns = tile_loss.statistics(logits, mask)
            return (
                tile_loss.merge_rows(row_state, of_rows),
                tile_loss.merge_columns(column_state, of_columns),
            )

        rows, columns = Block(static.cut(image), ()), Block(static.cut(text), ())
        start = tile_loss.initial(rows.embeddings.shape[:2])
        states = _circulate(
            ring, image.shape[0], visit, tile_loss.merge_columns, rows, columns, *start
        )
        pairs, saved = tile_loss.finalize(*states)
        valid = jax.tree.map(lambda x: x.reshape(-1)[: image.shape[0]], pairs)
        return ring.total(jax.tree.map(lambda x: x.sum(dtype=jnp.float32), valid)), saved

    run = ring.on_each_device(local, inputs=(True, True, False, False), outputs=(False, True))
    sums, saved = run(image, text, scale, bias)
    means = jax.tree.map(lambda x: x / batch, sums)
    value = sum(means.terms) / tile_loss.num_terms
    return (value, means.metrics), (image, text, scale, bias, saved)


def _backward(static: RingLoss, residuals: Tree, cotangents: Tree) -> tuple[jax.Array, ...]:
    tile_loss, ring = static.tile_loss, static.ring
    image, text, scale, bias, saved = residuals
    weight = cotangents[0] / (tile_loss.num_terms * image.shape[0])

    def local(
        image: jax.Array,
        text: jax.Array,
        scale: jax.Array,
        bias: jax.Array,
        saved: Tree,
        weight: jax.Array,
    ) -> tuple[jax.Array, ...]:
        def visit(
            mask: TileMask, row: Block, column: Block, row_state: Tree, column_state: Tree
        ) -> tuple[Tree, Tree]:
            logits = pair_logits(row.embeddings, column.embeddings, scale, bias)
            gradient = tile_loss.logit_gradient(logits, mask, row.saved, column.saved)
            if mask.valid is not None:
                gradient = jnp.where(mask.valid, gradient, 0)
            image_sum, bias_sum = row_state
            narrow = gradient.astype(image.dtype)
            image_sum = image_sum + product("ij,jd->id", narrow, column.embeddings)
            text_sum = column_state + product("ij,id->jd", narrow, row.embeddings)
            return (image_sum, bias_sum + gradient.sum(1)), text_sum

        rows, columns = Block(static.cut(image), saved[0]), Block(static.cut(text), saved[1])
        zeros = jnp.zeros(rows.embeddings.shape, jnp.float32)
        row_start = (zeros, jnp.zeros(zeros.shape[:2], jnp.float32))
        (image_sum, bias_sums), text_sum = _circulate(
            ring, image.shape[0], visit, jnp.add, rows, columns, row_start, zeros
        )
        # sum_ij gradient_ij x_i . y_j, without another pass over the logits.
        scale_sum = sum_rows_first(image_sum * rows.embeddings)
        scale_sum, bias_sum = ring.total((scale_sum, sum_rows_first(bias_sums)))
        whole = (x.reshape(-1, x.shape[2])[: image.shape[0]] for x in (image_sum, text_sum))
        image_gradient, text_gradient = ((weight * scale * x).astype(image.dtype) for x in whole)
        return image_gradient, text_gradient, weight * scale_sum, weight * bias_sum

    run = ring.on_each_device(
        local, inputs=(True, True, False, False, True, False), outputs=(True, True, False, False)
    )
    return run(image, text, scale, bias, saved, weight)


ring_loss.defvjp(_forward, _backward)


def _circulate(
    ring: DeviceRing,
    length: int,
    visit: Visit,
    merge: Callable[[Tree, Tree], Tree],
    rows: Block,
    columns: Block,
    row_start: Tree,
    column_start: Tree,
) -> tuple[Tree, Tree]:
    """Pairs every block of columns in the ring with the rows of this device.

    No visit waits for a transfer: the next block is sent meanwhile, and the state of the columns
    follows one visit behind. The compiler can hide both transfers behind the computation.

    Args:
        ring: devices that the batch is split over.
        length: L, the number of rows and of columns that are not padding.
        visit: merges a tile into the states of its rows and columns.
        merge: merges the states that two devices have of the same columns.
        rows: rows of this device, which stay.
        columns: columns of this device, which travel.
        row_start: initial state of rows, arrays (tiles, tile, ...).
        column_start: initial state of columns.

    Returns:
        The states of this device's rows and columns after all visits.
    """
    if ring.size == 1:
        return _over_tiles(length, True, visit, rows, columns, row_start, column_start)

    def hop(carry: Tree, _: None) -> tuple[Tree, None]:
        here, rows_state, columns_state = carry
        # The last hop sends an unused block home; a third copy of the loop would cost more.
        following, arrived = ring.send((here, columns_state))
        rows_state, met = _over_tiles(length, False, visit, rows, here, rows_state, column_start)
        return (following, rows_state, merge(arrived, met)), None

    following = ring.send(columns)
    state = _over_tiles(length, True, visit, rows, columns, row_start, column_start)
    (_, rows_state, columns_state), _ = jax.lax.scan(hop, (following, *state), length=ring.size - 1)
    return rows_state, ring.send(columns_state)


def _over_tiles(
    length: int,
    at_home: bool,
    visit: Visit,
    rows: Block,
    columns: Block,
    row_states: Tree,
    column_states: Tree,
) -> tuple[Tree, Tree]:
    """Visits every tile of a block of logits.

    Args:
        length: number of rows and of columns that are not padding.
        at_home: whether rows and columns belong to one device, so that the diagonal is positive.
        visit: merges a tile into the states of its rows and columns.
        rows: rows of the block.
        columns: columns of the block.
        row_states: states of the rows, arrays (tiles, tile, ...).
        column_states: states of the columns.

    Returns:
        The states of the rows and the columns.
    """
    tiles, size = rows.embeddings.shape[:2]
    numbers = jnp.arange(tiles)
    is_padded = tiles * size != length

    def one_row(column_states: Tree, row: Tree) -> tuple[Tree, Tree]:
        i, row_tile, row_state = row
        row_ids = (i * size + jnp.arange(size))[:, None]

        def one_column(row_state: Tree, column: Tree) -> tuple[Tree, Tree]:
            j, column_tile, column_state = column
            column_ids = (j * size + jnp.arange(size))[None, :]
            mask = TileMask(
                positive=row_ids == column_ids if at_home else None,
                valid=(row_ids < length) & (column_ids < length) if is_padded else None,
            )
            return visit(mask, row_tile, column_tile, row_state, column_state)

        row_state, column_states = jax.lax.scan(
            one_column, row_state, (numbers, columns, column_states)
        )
        return column_states, row_state

    column_states, row_states = jax.lax.scan(one_row, column_states, (numbers, rows, row_states))
    return row_states, column_states
