"""Gradient accumulation with the gradient of the whole batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from vit_jax.errors import UserError
from vit_jax.parallel.mesh import check_batch_size


@dataclasses.dataclass(frozen=True)
class Microbatches:
    """How a global batch is cut into microbatches.

    The activations of a microbatch are recomputed in the backward pass instead of kept, so memory
    is that of one microbatch while the gradient is that of the whole batch. These are the two
    passes of GradCache (Gao et al. 2021, section 3), written by automatic differentiation.

    Attributes:
        steps: number of microbatches; 1 runs the batch as a whole.
        shards: number of devices that the batch is split over.
    """

    steps: int = 1
    shards: int = 1

    def run(
        self,
        function: Callable[..., tuple[jax.Array, ...]],
        model: Any,
        arrays: tuple[Any, ...],
        rng: Key[Array, ""] | None,
    ) -> tuple[jax.Array, ...]:
        """Applies `function(model, *arrays, rng)` to a whole batch.

        Args:
            function: maps arrays (microbatch, ...) to outputs (microbatch, D).
            model: module, whose running statistics are updated in place.
            arrays: inputs (B, ...), or pytrees of such arrays.
            rng: key, split over the microbatches; None for evaluation, where the batch is run as a
                whole.

        Returns:
            Outputs (B, D).
        """
        if self.steps == 1 or rng is None:
            return function(model, *arrays, rng)
        graphdef, state = nnx.split(model)
        params = nnx.to_pure_dict(state)

        def run_one(one: tuple[jax.Array, jax.Array]) -> Any:
            index, key = one
            module = nnx.merge(graphdef, nnx.State(params))
            own = jax.tree.map(lambda x: self._cut(x, index), arrays)
            outputs = function(module, *own, key)
            return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

        xs = (jnp.arange(self.steps), jax.random.split(rng, self.steps))
        outputs, statistics = jax.lax.map(jax.checkpoint(run_one, prevent_cse=False), xs)
        # Each microbatch has moved the running statistics from the same values.
        nnx.update(model, jax.tree.map(lambda x: jnp.mean(x, axis=0), statistics))
        return tuple(self._join(x) for x in outputs)

    # Microbatch k takes the k-th piece of every device's rows, so that devices exchange nothing.
    # It is cut within the loop: cutting beforehand would copy the whole batch.
    def _cut(self, x: jax.Array, k: jax.Array) -> jax.Array:
        pieces = x.reshape(self.shards, self.steps, -1, *x.shape[1:])
        piece = jax.lax.dynamic_index_in_dim(pieces, k, axis=1, keepdims=False)
        return piece.reshape(-1, *x.shape[1:])

    def _join(self, x: jax.Array) -> jax.Array:
        pieces = x.reshape(self.steps, self.shards, -1, x.shape[-1])
        return jnp.moveaxis(pieces, 0, 1).reshape(-1, x.shape[-1])


def cut_batch(batch_size: int, shards: int, least: int, budget: int, tokens: int) -> Microbatches:
    """Finds the smallest number of microbatches that respects a budget of image tokens.

    Args:
        batch_size: number of examples of a batch.
        shards: number of devices that the batch is split over; divides `batch_size`.
        least: smallest number of microbatches.
        budget: largest number of image tokens that a device processes at once; 0 for no limit.
        tokens: image tokens per example.

    Raises:
        UserError: `least` does not divide the batch, or an example has more tokens than the budget.

    Example:
        >>> cut_batch(batch_size=64, shards=2, least=1, budget=4096, tokens=256).steps
        2
    """
    if least < 1:
        raise UserError(f"config.grad_accum_steps={least}: expected 1 or more")
    noun = f"microbatches ({shards} devices x grad_accum_steps={least})"
    check_batch_size(batch_size, shards * least, "config.batch_size", noun)
    examples = batch_size // shards
    if budget and tokens > budget:
        raise UserError(
            f"config.token_budget={budget}: expected at least the {tokens} tokens of one image"
        )
    fitting = (n for n in range(least, examples + 1) if examples % n == 0)
    steps = next(n for n in fitting if not budget or examples // n * tokens <= budget)
    return Microbatches(steps, shards)
