"""The MLP of a transformer block: every implementation against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.ops.mlp import MLP, mlp


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("implementation", MLP)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (2, 3, 2, 4)])
def test_mlp(implementation, shape, gated):
    x = random(*shape)
    fc1, fc2 = (random(4, 7, seed=1), random(7, seed=2)), (random(7, 4, seed=3), random(4, seed=4))
    gate = (random(4, 7, seed=5), random(7, seed=6)) if gated else None
    found = mlp(x, fc1, fc2, jnp.tanh, gate=gate, implementation=implementation)
    x, k1, b1, k2, b2 = (np.asarray(a, np.float64) for a in (x, *fc1, *fc2))
    hidden = x @ k1 + b1
    hidden = np.tanh(x @ gate[0] + gate[1]) * hidden if gated else np.tanh(hidden)
    np.testing.assert_allclose(found, hidden @ k2 + b2, rtol=1e-5, atol=1e-5)
