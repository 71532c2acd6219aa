"""PRNG keys of a model's parameters."""

import jax
from flax import nnx


class _Stream(nnx.RngStream):
    """A stream whose counter is a Python number.

    The counter of Flax is an array. While a model is traced, each update of it makes JAX format an
    error message with all equations so far: 70% of the time to trace CLIP B/16.
    """

    drawn = 0

    def __call__(self) -> jax.Array:
        """Returns the next key, equal to that of `nnx.RngStream`."""
        key = jax.random.fold_in(self.key[...], self.drawn)
        self.drawn += 1
        return key


def parameter_rngs(key: jax.Array) -> nnx.Rngs:
    """Returns `nnx.Rngs(key)` with a faster stream that draws the same keys.

    Args:
        key: PRNG key.
    """
    rngs = nnx.Rngs(key)
    rngs.default = _Stream(key, tag="default")  # type: ignore[attr-defined]  # has any attribute
    return rngs
