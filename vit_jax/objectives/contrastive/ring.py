"""The contrastive loss without the N x N matrix: blocks of texts travel round a ring of devices.

Each device keeps its images. The texts, L of them, start at home and visit every device; each visit
computes the L x L logits of that pairing, folds them into running statistics and forgets them. The
statistics of the images (rows) stay, those of the texts (columns) travel and come home at the end.
The backward pass goes round once more: it recomputes the logits, and from the saved statistics
their gradient; what it adds up for the texts travels as the statistics did. Block-wise softmax over
a ring is from Liu et al. 2023 (Ring Attention, https://arxiv.org/abs/2310.01889, sec. 3); doing so
for the contrastive loss, and cutting every visit into tiles so that no block of logits is held,
from Cheng et al. 2024 (Inf-CL, https://arxiv.org/abs/2410.17243, sec. 3). The sigmoid loss needs no
statistics (Zhai et al. 2023, https://arxiv.org/abs/2303.15343, sec. 3.3).

Both passes are a `shard_map` of their own inside one `custom_vjp`. Nothing is ever differentiated
through a collective, so sums over devices are written exactly once, and mesh axes that do not split
the batch merely repeat the work.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from vit_jax.objectives.contrastive.ring_schedule import ring_route
from vit_jax.objectives.contrastive.statistics import KINDS, TileMask

Tree = Any


def product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Einsum of two arrays of one dtype into float32; bfloat16 in one pass, float32 in full."""
    # Products of two bfloat16 are exact in float32, so more passes would buy nothing.
    precision = jax.lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=jnp.float32)


def pair_logits(image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Logits (n, m), float32, of images (n, D) against texts (m, D)."""
    if image.dtype == jnp.bfloat16:
        return scale * product("id,jd->ij", image, text) + bias
    # Scaled before the product, since compilers fuse a multiplication after it with the subtraction
    # of the maximum, rounding differently in the two passes: 2e-6 of the gradient at scale 100.
    return product("id,jd->ij", scale * image, text) + bias


def row_sum_total(x: jax.Array) -> jax.Array:
    """Sum of an array, the last dimension first."""
    # Without the barrier XLA makes one long sum of both; on CPU that rounds ten times worse.
    return jax.lax.optimization_barrier(x.sum(-1)).sum()


@dataclasses.dataclass(frozen=True)
class Ring:
    """What is static about one loss: its kind, the devices it runs on, and how blocks are cut.

    Attributes:
        kind: `softmax` or `sigmoid`.
        mesh: the mesh, or None to compute without one, as a ring of one device.
        batch_axes: the mesh axes that split the batch; flattened, they are the ring.
        tile_size: largest side of a tile in pairs; None for whole blocks.
    """

    kind: str
    mesh: Mesh | None
    batch_axes: tuple[str, ...]
    tile_size: int | None

    @property
    def shards(self) -> int:
        """Number of devices in the ring."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[a] for a in self.batch_axes)

    def send(self, tree: Tree) -> Tree:
        """Passes every array on to the next device, and returns what the one before sent."""
        if self.shards == 1:
            return tree
        assert self.mesh is not None
        # In the order of the mesh: JAX numbers the devices of a permutation so, whatever the order
        # of its axes (0.10 silently, 0.12 refuses another).
        axes = tuple(axis for axis in self.mesh.axis_names if axis in self.batch_axes)
        route = ring_route(self.mesh, axes)
        steps = list(zip(route, route[1:] + route[:1], strict=True))
        return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, steps), tree)

    def total(self, tree: Tree) -> Tree:
        """Sums every array over the ring."""
        return tree if self.shards == 1 else jax.lax.psum(tree, self.batch_axes)

    def on_each_device(self, function: Callable, inputs: Tree, outputs: Tree) -> Callable:
        """Runs a function on local arrays; `inputs` and `outputs` say what is split (True)."""
        if self.mesh is None:
            return function
        split, whole = PartitionSpec(self.batch_axes), PartitionSpec()
        specs = jax.tree.map(lambda is_split: split if is_split else whole, (inputs, outputs))
        # check_vma would track what varies over which axis so that autodiff can transpose the
        # collectives; there is none here, and it would have every initial loop state annotated.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False
        )

    def tiling(self, length: int) -> tuple[int, int]:
        """Number and size of the tiles of a block: even, so that little of the last is padding."""
        count = -(-length // min(self.tile_size or length, length))
        return count, -(-length // count)

    def cut(self, block: jax.Array) -> jax.Array:
        """(L, D) to (tiles, tile, D), with zeros for the missing rows of the last tile."""
        count, size = self.tiling(block.shape[0])
        padded = jnp.pad(block, ((0, count * size - block.shape[0]), (0, 0)))
        return padded.reshape(count, size, -1)


class Block(NamedTuple):
    """The embeddings of one device, cut into tiles, and what is known of each.

    Attributes:
        embeddings: (tiles, tile, D).
        saved: arrays (tiles, tile), or nothing.
    """

    embeddings: jax.Array
    saved: Tree


# (place, row tile, column tile, row state, column state) -> (row state, column state)
Visit = Callable[[TileMask, Block, Block, Tree, Tree], tuple[Tree, Tree]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_loss(
    ring: Ring, image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and its metrics, as `contrastive_loss` describes them.

    Args:
        ring: the kind of loss and where to compute it.
        image: (N, D) float32 or bfloat16, N a multiple of `ring.shards`.
        text: (N, D), of the same dtype.
        scale: scalar float32.
        bias: scalar float32. It gets a gradient in the sigmoid loss only.
    """
    return _forward(ring, image, text, scale, bias)[0]


def _forward(
    ring: Ring, image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Tree]:
    kind, batch = KINDS[ring.kind], image.shape[0]

    def local(
        image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> tuple[dict[str, jax.Array], Tree]:
        def visit(
            place: TileMask, row: Block, column: Block, row_state: Tree, column_state: Tree
        ) -> tuple[Tree, Tree]:
            logits = pair_logits(row.embeddings, column.embeddings, scale, bias)
            return kind.fold(logits, place, row_state, column_state)

        rows, columns = Block(ring.cut(image), ()), Block(ring.cut(text), ())
        start = kind.start(rows.embeddings.shape[:2])
        states = _circulate(ring, image.shape[0], visit, kind.merge, rows, columns, *start)
        pairs, saved = kind.finish(*states)
        flat = {name: x.reshape(-1)[: image.shape[0]] for name, x in pairs.items()}
        return ring.total({name: x.sum(dtype=jnp.float32) for name, x in flat.items()}), saved

    run = ring.on_each_device(local, inputs=(True, True, False, False), outputs=(False, True))
    sums, saved = run(image, text, scale, bias)
    metrics = {name: x / batch for name, x in sums.items()}
    return (metrics.pop("loss"), metrics), (image, text, scale, bias, saved)


def _backward(ring: Ring, residuals: Tree, cotangents: Tree) -> tuple[jax.Array, ...]:
    kind = KINDS[ring.kind]
    image, text, scale, bias, saved = residuals
    weight = cotangents[0] / (kind.summands * image.shape[0])

    def local(
        image: jax.Array,
        text: jax.Array,
        scale: jax.Array,
        bias: jax.Array,
        saved: Tree,
        weight: jax.Array,
    ) -> tuple[jax.Array, ...]:
        def visit(
            place: TileMask, row: Block, column: Block, row_state: Tree, column_state: Tree
        ) -> tuple[Tree, Tree]:
            logits = pair_logits(row.embeddings, column.embeddings, scale, bias)
            slope = kind.slope(logits, place, row.saved, column.saved)
            if place.real is not None:
                slope = jnp.where(place.real, slope, 0)
            gradient, slopes = row_state
            narrow = slope.astype(image.dtype)
            gradient = gradient + product("ij,jd->id", narrow, column.embeddings)
            column_state = column_state + product("ij,id->jd", narrow, row.embeddings)
            return (gradient, slopes + slope.sum(1)), column_state

        rows, columns = Block(ring.cut(image), saved[0]), Block(ring.cut(text), saved[1])
        zeros = jnp.zeros(rows.embeddings.shape, jnp.float32)
        row_start = (zeros, jnp.zeros(zeros.shape[:2], jnp.float32))
        (image_sum, slopes), text_sum = _circulate(
            ring, image.shape[0], visit, jnp.add, rows, columns, row_start, zeros
        )
        # sum_ij slope_ij x_i . y_j, without a pass of its own.
        scale_sum = row_sum_total(image_sum * rows.embeddings)
        scale_sum, bias_sum = ring.total((scale_sum, row_sum_total(slopes)))
        whole = (x.reshape(-1, x.shape[2])[: image.shape[0]] for x in (image_sum, text_sum))
        image_gradient, text_gradient = ((weight * scale * x).astype(image.dtype) for x in whole)
        return image_gradient, text_gradient, weight * scale_sum, weight * bias_sum

    run = ring.on_each_device(
        local, inputs=(True, True, False, False, True, False), outputs=(True, True, False, False)
    )
    return run(image, text, scale, bias, saved, weight)


ring_loss.defvjp(_forward, _backward)


def _circulate(
    ring: Ring,
    length: int,
    visit: Visit,
    merge: Callable[[Tree, Tree], Tree],
    rows: Block,
    columns: Block,
    row_start: Tree,
    column_start: Tree,
) -> tuple[Tree, Tree]:
    """Shows every block of columns in the ring to the rows of this device.

    No visit waits for what is being sent: the next block is on its way meanwhile, and the state of
    the columns follows one visit behind. The compiler may thus hide both transfers.

    Args:
        ring: the devices.
        length: L, the number of rows and of columns that are not padding.
        visit: folds a tile into the states of its rows and columns.
        merge: joins the states that two devices have of the same columns.
        rows: the rows of this device, which stay.
        columns: the columns of this device, which travel.
        row_start: state of rows that have met nothing, arrays (tiles, tile, ...).
        column_start: the same of columns.

    Returns:
        The states of this device's rows and columns after all visits.
    """
    if ring.shards == 1:
        return _over_tiles(length, True, visit, rows, columns, row_start, column_start)

    def hop(carry: Tree, _: None) -> tuple[Tree, None]:
        here, rows_state, columns_state = carry
        # The last hop sends a block home that nobody needs; a third copy of the loop costs more.
        following, arrived = ring.send((here, columns_state))
        rows_state, met = _over_tiles(length, False, visit, rows, here, rows_state, column_start)
        return (following, rows_state, merge(arrived, met)), None

    following = ring.send(columns)
    state = _over_tiles(length, True, visit, rows, columns, row_start, column_start)
    (_, rows_state, columns_state), _ = jax.lax.scan(
        hop, (following, *state), length=ring.shards - 1
    )
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
    """Visits every tile of a block of logits; the diagonal is of positives only `at_home`."""
    tiles, size = rows.embeddings.shape[:2]
    numbers = jnp.arange(tiles)
    is_padded = tiles * size != length

    def one_row(column_states: Tree, row: Tree) -> tuple[Tree, Tree]:
        i, row_tile, row_state = row
        row_ids = (i * size + jnp.arange(size))[:, None]

        def one_column(row_state: Tree, column: Tree) -> tuple[Tree, Tree]:
            j, column_tile, column_state = column
            column_ids = (j * size + jnp.arange(size))[None, :]
            place = TileMask(
                positive=row_ids == column_ids if at_home else None,
                real=(row_ids < length) & (column_ids < length) if is_padded else None,
            )
            return visit(place, row_tile, column_tile, row_state, column_state)

        row_state, column_states = jax.lax.scan(
            one_column, row_state, (numbers, columns, column_states)
        )
        return column_states, row_state

    column_states, row_states = jax.lax.scan(one_row, column_states, (numbers, rows, row_states))
    return row_states, column_states
