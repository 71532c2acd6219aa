"""A batch through a model in parts, one after the other, as if it were whole."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class Microbatches:
    """How a global batch is cut.

    A part's activations are recomputed in the backward pass instead of kept, one part at a time, so
    memory is that of a part while the gradient is that of the whole batch: the two passes of
    GradCache (Gao et al. 2021, section 3), written by automatic differentiation.

    Attributes:
        steps: number of parts; 1 for none.
        shards: devices that the batch is split over.
    """

    steps: int = 1
    shards: int = 1

    def run(
        self,
        function: Callable[..., tuple[jax.Array, ...]],
        model: Any,
        arrays: tuple[jax.Array, ...],
        rng: jax.Array,
    ) -> tuple[jax.Array, ...]:
        """Outputs (B, D) of `function(model, *arrays, rng)` for a whole batch.

        Args:
            function: maps arrays (part, ...) to outputs (part, D).
            model: a module, whose running statistics are updated.
            arrays: inputs (B, ...).
            rng: key; each part gets its own.
        """
        if self.steps == 1:
            return function(model, *arrays, rng)
        graphdef, state = nnx.split(model)
        params = nnx.to_pure_dict(state)

        def run_part(part: tuple[jax.Array, jax.Array]) -> Any:
            k, rng = part
            module = nnx.merge(graphdef, nnx.State(params))
            outputs = function(module, *(self._cut(x, k) for x in arrays), rng)
            return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

        parts = (jnp.arange(self.steps), jax.random.split(rng, self.steps))
        outputs, statistics = jax.lax.map(jax.checkpoint(run_part, prevent_cse=False), parts)
        # Each part has moved the running statistics from the same start.
        nnx.update(model, jax.tree.map(lambda x: jnp.mean(x, axis=0), statistics))
        return tuple(self._join(x) for x in outputs)

    # Part k takes the k-th piece of every device's rows, so that each device cuts its own and sends
    # none. It is cut within the loop: cut beforehand, the whole batch would be copied.
    def _cut(self, x: jax.Array, k: jax.Array) -> jax.Array:
        pieces = x.reshape(self.shards, self.steps, -1, *x.shape[1:])
        piece = jax.lax.dynamic_index_in_dim(pieces, k, axis=1, keepdims=False)
        return piece.reshape(-1, *x.shape[1:])

    def _join(self, x: jax.Array) -> jax.Array:
        pieces = x.reshape(self.steps, self.shards, -1, x.shape[-1])
        return jnp.moveaxis(pieces, 0, 1).reshape(-1, x.shape[-1])
