"""What the exchanges of a step carry: parameters, as FSDP should, or activations."""

import collections
from typing import Any

import jax

from vit_jax.planning.collectives import Collective

PARAMETERS, ACTIVATIONS, OTHERS = "parameters", "activations", "others"


class Contents:
    """Tells arrays apart by their shapes, which is all that a compiled program keeps of them."""

    def __init__(self, params: Any, batch_size: int, batch_shards: int):
        """Remembers the shapes.

        Args:
            params: `ShapeDtypeStruct`s with shardings.
            batch_size: global.
            batch_shards: parts that the batch is split into.
        """
        self._local_batch = batch_size // batch_shards
        self._params = set()
        for x in jax.tree.leaves(params):
            for shape in (x.shape, x.sharding.shard_shape(x.shape)):
                # A scanned stack is exchanged layer by layer.
                self._params |= {_squeezed(shape), _squeezed(shape[1:])}

    def of(self, shape: tuple[int, ...]) -> str:
        """Parameters (or their gradients), activations, or others, such as single numbers."""
        if _squeezed(shape) and _squeezed(shape) in self._params:
            return PARAMETERS
        if self._local_batch > 1 and any(n and n % self._local_batch == 0 for n in shape):
            return ACTIVATIONS
        return OTHERS

    def bytes_by_content(self, found: list[Collective]) -> dict[str, float]:
        """Bytes that each device receives in a step, by what they are."""
        totals: collections.Counter[str] = collections.Counter()
        for exchange in found:
            for size, shape in exchange.arrays:
                share = size / max(exchange.array_bytes, 1)
                totals[self.of(shape)] += round(share * exchange.moved_bytes)
        return dict(totals.most_common())

    def describe(self, exchange: Collective) -> dict[str, Any]:
        """An exchange as plain data."""
        carried = {self.of(shape) for _, shape in exchange.arrays}
        return {
            "kind": exchange.kind,
            "carries": " and ".join(sorted(carried, reverse=True)),
            "shapes": [list(shape) for _, shape in exchange.arrays],
            "group": exchange.group,
            "times": exchange.times,
            "bytes": round(exchange.moved_bytes),
            "source": exchange.source,
        }


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(n for n in shape if n > 1))
