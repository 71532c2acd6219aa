"""Batch normalisation (Ioffe and Szegedy 2015), with torch's conventions for running averages.

The running averages are `nnx.BatchStat` variables beside the parameters, marked `trainable=False`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.models.layers.parameters import metadata

EPSILON = 1e-5
# Weight of the new batch in the running averages: torch's momentum, one minus Flax's.
MOMENTUM = 0.1


class BatchNorm(nnx.Module):
    """Normalises each channel over batch, rows and columns, with float32 statistics.

    Under jit the batch is the global one: the statistics are those of all devices.

    Attributes:
        frozen: whether training uses the running averages as well and leaves them unchanged.
    """

    def __init__(
        self,
        width: int,
        *,
        initial_scale: float = 1.0,
        affine: bool = True,
        epsilon: float = EPSILON,
        dtype: Any,
    ) -> None:
        """Builds the layer.

        Args:
            width: number of channels C.
            initial_scale: initial value of the learned factors.
            affine: whether there are learned factors and offsets.
            epsilon: constant added to the variance.
            dtype: compute type.
        """
        self.dtype, self.affine, self.epsilon = dtype, affine, epsilon
        self.frozen = False
        about = metadata("embed", decay=False)
        if affine:
            self.scale = nnx.Param(jnp.full((width,), initial_scale, jnp.float32), **about)
            self.bias = nnx.Param(jnp.zeros((width,), jnp.float32), **about)
        self.mean = nnx.BatchStat(jnp.zeros((width,), jnp.float32), **about, trainable=False)
        self.var = nnx.BatchStat(jnp.ones((width,), jnp.float32), **about, trainable=False)

    def __call__(
        self, x: Float[Array, "*batch channels"], *, train: bool
    ) -> Float[Array, "*batch channels"]:
        """Normalises the channels.

        Args:
            x: (B, ..., C).
            train: whether to use the statistics of the batch and to update the running averages,
                unless the layer is frozen.

        Returns:
            (B, ..., C), compute type.

        Raises:
            UserError: in training, when a channel has a single value and therefore no variance.
        """
        x = x.astype(jnp.float32)
        if train and not self.frozen:
            axes = tuple(range(x.ndim - 1))
            mean, var = jnp.mean(x, axis=axes), jnp.var(x, axis=axes)
            self._update(mean, var, count=x.size // x.shape[-1])
        else:
            mean, var = self.mean[...], self.var[...]
        inverse = jax.lax.rsqrt(var + self.epsilon)
        if not self.affine:
            return ((x - mean) * inverse).astype(self.dtype)
        return ((x - mean) * (self.scale[...] * inverse) + self.bias[...]).astype(self.dtype)

    def _update(self, mean: jax.Array, var: jax.Array, count: int) -> None:
        if count < 2:
            raise UserError(
                "batch normalisation needs more than one value per channel in training, found one: "
                "use more or larger images"
            )
        # The batch is normalised with the biased variance; the running average is of the unbiased.
        var = var * (count / (count - 1))
        for running, batch in ((self.mean, mean), (self.var, var)):
            batch = jax.lax.stop_gradient(batch)
            running[...] = (1 - MOMENTUM) * running[...] + MOMENTUM * batch
