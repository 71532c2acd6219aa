"""Losses of masks and simulated clicks against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from vit_jax.objectives import interaction, mask_losses

SHAPE = (5, 6, 7)
pick_cells = jax.jit(interaction.pick_cells)


def make_masks(seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.random(SHAPE) < np.array([0.0, 0.1, 0.5, 0.9, 1.0])[:, None, None]
    valid = rng.random(SHAPE) < 0.8
    valid[1] = False
    return rng.normal(size=SHAPE) * 3, targets, valid


def reference(logits, targets, valid, alpha=0.25, gamma=2.0):
    """Focal loss, dice loss and IoU of each mask, one cell after the other."""
    found = []
    for x, t, v in zip(logits, targets, valid, strict=True):
        focal = [
            -(alpha if b else 1 - alpha)
            * (expit(-a) if b else expit(a)) ** gamma
            * np.log(expit(a) if b else expit(-a))
            for a, b in zip(x[v], t[v], strict=True)
        ]
        p = expit(x[v])
        dice = 1 - (2 * np.sum(p[t[v]]) + 1) / (p.sum() + t[v].sum() + 1)
        union = ((x > 0) | t)[v].sum()
        iou = ((x > 0) & t)[v].sum() / union if union else 0.0
        found.append((np.mean(focal) if focal else 0.0, dice, iou))
    return np.array(found).T


@jax.jit
def losses(logits, targets, valid):
    return jnp.stack(
        [
            mask_losses.mask_focal_loss(logits, targets, valid),
            mask_losses.dice_loss(logits, targets, valid),
            mask_losses.mask_iou(logits > 0, targets, valid),
        ]
    )


def test_losses_and_gradients():
    logits, targets, valid = make_masks()
    expected = reference(logits, targets, valid)
    np.testing.assert_allclose(losses(np.float32(logits), targets, valid), expected, rtol=1e-5)
    step = np.random.default_rng(1).normal(size=SHAPE) * 1e-6
    gradient = jax.grad(lambda x: jnp.sum(losses(x, targets, valid)[:2]))(np.float32(logits))
    up, down = (reference(logits + sign * step, targets, valid)[:2].sum() for sign in (1, -1))
    np.testing.assert_allclose(np.sum(gradient * step), (up - down) / 2, rtol=1e-4)
    assert not gradient[~valid].any()


def test_extreme_logits_have_finite_gradients():
    _, targets, valid = make_masks()
    for value in (0.0, 1e30, -1e30):
        logits = jnp.full(SHAPE, value, jnp.float32)
        gradient = jax.grad(lambda x: jnp.sum(losses(x, targets, valid)[:2]))(logits)
        assert np.isfinite(gradient).all()


# --- clicks ---------------------------------------------------------------------------------------


def test_every_cell_of_a_mask_is_picked_equally_often():
    _, targets, _ = make_masks()
    for mask in targets[1:]:
        cells = np.argwhere(mask)[:, ::-1]
        noise = (np.arange(3 * len(cells)) + 0.5) / (3 * len(cells))
        many = np.broadcast_to(mask, (len(noise), *mask.shape))
        found = pick_cells(many, np.float32(noise))
        np.testing.assert_array_equal(found, np.repeat(cells, 3, axis=0))
        last = pick_cells(mask[None], np.float32([1 - 2**-24]))
        np.testing.assert_array_equal(last[0], cells[-1])


def test_an_empty_mask_gives_a_cell_of_the_grid():
    found = pick_cells(np.zeros(SHAPE, bool), np.full(SHAPE[:1], 0.3, np.float32))
    np.testing.assert_array_equal(found, [[0, 0]] * 5)


def test_corrections_are_in_the_error_region():
    logits, targets, valid = make_masks()
    found = logits > 0
    found[2] = targets[2]  # nothing is wrong
    correct = jax.jit(interaction.corrective_points)
    for seed in range(20):
        noise = np.random.default_rng(seed).random(5).astype(np.float32)
        cells, inside = correct(found, targets, valid, noise)
        for i in (0, 2, 3, 4):
            x, y = cells[i]
            assert valid[i, y, x]
            assert inside[i] == targets[i, y, x]
            assert i == 2 or found[i, y, x] != targets[i, y, x]


def test_boxes_around_masks():
    _, targets, _ = make_masks()
    found = interaction.boxes_around(jnp.asarray(targets))
    assert found[0].tolist() == [0, 0, 0, 0]
    for box, mask in zip(found[1:], targets[1:], strict=True):
        rows, columns = np.nonzero(mask)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == expected


@pytest.mark.parametrize(("most", "expected"), [(20.0, 0.1), (1.0, None)])
def test_noise_of_boxes(most, expected):
    boxes = jnp.tile(jnp.float32([40, 30, 60, 70]), (4000, 1))
    noise = jnp.float32(np.random.default_rng(0).normal(size=boxes.shape))
    found = interaction.noisy_boxes(boxes, noise, scale=0.1, most=most, size=(80, 100))
    shift = np.asarray(found - boxes)
    if expected is None:
        assert np.abs(shift).max() == 1.0
    else:
        np.testing.assert_allclose(shift.std(axis=0), [2, 4, 2, 4], rtol=0.05)
    inside = interaction.noisy_boxes(boxes, 100 * noise, scale=0.1, most=1e9, size=(80, 100))
    assert inside.min() == 0
    assert inside[:, 2].max() == 100
    assert inside[:, 3].max() == 80
