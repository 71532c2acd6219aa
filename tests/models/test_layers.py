"""Layers: positions, stochastic depth, patch selection, batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models.layers.drop_path import drop_path, drop_path_schedule
from vit_jax.models.layers.patch_dropout import keep_patches, select_patches
from vit_jax.models.layers.positions import resize_positions, sincos_positions


def test_resized_positions_keep_prefix_and_linear_ramps():
    """Bicubic interpolation reproduces a linear ramp away from the border."""
    ramp = np.stack(np.meshgrid(np.arange(8.0), np.arange(6.0), indexing="ij"), -1)
    table = np.concatenate([[[100.0, 200.0]], ramp.reshape(48, 2)]).astype(np.float32)
    found = np.asarray(resize_positions(jnp.asarray(table), (8, 6), (16, 12), 1))
    assert found.shape == (1 + 16 * 12, 2)
    np.testing.assert_array_equal(found[0], table[0])
    grid = found[1:].reshape(16, 12, 2)
    rows, columns = (np.arange(16) + 0.5) / 2 - 0.5, (np.arange(12) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(grid[4:-4, 6, 0], rows[4:-4], atol=1e-5)
    np.testing.assert_allclose(grid[8, 4:-4, 1], columns[4:-4], atol=1e-5)


def test_sincos_positions_encode_column_and_row():
    """MAE's layout: sine and cosine of the column, then of the row, of 1 and of 1 / 100."""
    found = np.asarray(sincos_positions((3, 5), 8, temperature=1e4)).reshape(3, 5, 8)
    rates = np.array([1.0, 0.01])
    row, column = 2, 4
    expected = [f(p * rates) for p in (column, row) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(found[row, column], np.concatenate(expected), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="width divisible by 4, found 6"):
        sincos_positions((2, 2), 6)


def test_drop_path_keeps_the_mean():
    x = jnp.ones((20_000, 1, 1))
    dropped = np.asarray(drop_path(x, 0.3, jax.random.key(0)))
    assert set(np.unique(dropped.round(5))) == {0.0, np.float32(1 / 0.7).round(5)}
    assert abs(dropped.mean() - 1) < 0.02
    assert drop_path(x, 0.3, None) is x


def test_drop_path_schedule():
    rates, keys = drop_path_schedule(0.3, 4, jax.random.key(0))
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3], rtol=1e-6)
    assert keys.shape == (4,)
    assert drop_path_schedule(0.3, 4, None)[1] is None
    assert drop_path_schedule(0.0, 4, jax.random.key(0))[1] is None


def test_select_patches_keeps_the_prefix():
    tokens = jnp.arange(2 * 6.0).reshape(2, 6, 1)
    found = select_patches(tokens, jnp.asarray([[3, 0], [1, 2]]), num_prefix=2)
    np.testing.assert_array_equal(found[..., 0], [[0, 1, 5, 2], [6, 7, 9, 10]])


def test_patch_dropout_keeps_distinct_patches_of_each_example():
    found = np.asarray(keep_patches(3, 16, 0.75, jax.random.key(0)))
    assert found.shape == (3, 4)
    assert all(len(set(row)) == 4 and set(row) <= set(range(16)) for row in found)
    assert len({tuple(row) for row in found}) == 3
    assert keep_patches(3, 16, 0.99, jax.random.key(0)).shape == (3, 1)
