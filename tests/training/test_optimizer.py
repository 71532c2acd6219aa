"""AdamW and schedules against formulas written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.training.optimizer import (
    make_optimizer,
    make_schedule,
    matrix_dimensions,
    project,
)


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("cosine", lambda t: 0.5 * (1 + np.cos(np.pi * t))),
        ("linear", lambda t: 1 - t),
        ("constant", lambda t: 1.0),
    ],
)
def test_schedule(name, decayed):
    schedule = make_schedule(name, lr=0.3, warmup_steps=10, total_steps=110)
    for step in (0, 5, 10, 35, 60, 109):
        expected = 0.03 * step if step < 10 else 0.3 * decayed((step - 10) / 100)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-8)


def test_schedule_errors():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        make_schedule("cosin", lr=1.0, warmup_steps=0, total_steps=5)
    with pytest.raises(UserError, match="warm-up of 5 steps is not shorter than the run of 5"):
        make_schedule("cosine", lr=1.0, warmup_steps=5, total_steps=5)


class Model:
    """Stands for a ModelDef: metadata by key."""

    def __init__(self, **trees):
        self._trees = trees

    def metadata(self, key):
        return self._trees[key]


def test_muon_orthogonalises_each_matrix_of_a_stack():
    """Singular values of the momentum become nearly equal, its singular vectors stay.

    Five Newton-Schulz iterations end between 0.68 and 1.13; updates have the size of AdamW's.
    """
    config = default_config("vit_ti16").optim
    config.update(name="muon", weight_decay=0.0, b1=0.9, b2=0.95)
    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 6, 3, 2, 5), "bias": (2, 4)}
    params = {k: np.zeros(s, np.float32) for k, s in shapes.items()}
    grads = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    model = Model(
        decay={"kernel": True, "bias": False},
        axes={"kernel": ("layers", "embed", "qkv", "heads", "head_dim"), "bias": ("layers", "mlp")},
    )
    optimizer = make_optimizer(config, lambda _: 1.0, model)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for layer in range(2):
        for i in range(3):
            u, _, vt = np.linalg.svd(
                grads["kernel"][layer, :, i].reshape(6, 10), full_matrices=False
            )
            found = -np.asarray(updates["kernel"][layer, :, i]).reshape(6, 10)
            singular = np.diag(u.T @ found @ vt.T) / (0.2 * np.sqrt(10))
            assert ((singular > 0.6) & (singular < 1.3)).all(), singular
            np.testing.assert_allclose(u * (singular * 0.2 * np.sqrt(10)) @ vt, found, atol=0.02)
    # The first step of Adam with Nesterov's momentum (Dozat 2016).
    first = 0.9 * 0.1 / (1 - 0.9**2) + 1
    np.testing.assert_allclose(updates["bias"], -first * np.sign(grads["bias"]), rtol=1e-3)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("layers", "embed", "mlp"), ((1,), (2,))),
        (("layers", "mlp", "embed"), ((1,), (2,))),
        (("layers", "heads", "head_dim", "embed"), ((1, 2), (3,))),
        (("patch_h", "patch_w", "channels", "embed"), ((0, 1, 2), (3,))),
        (("embed", "joint"), ((0,), (1,))),
        (("layers", "embed"), None),
    ],
)
def test_matrices_by_their_dimensions(axes, expected):
    assert matrix_dimensions(axes, True) == expected
    assert matrix_dimensions(axes, False) is None


def test_unknown_optimizer():
    config = default_config("vit_ti16").optim
    config.name = "adam"
    with pytest.raises(UserError, match=r"unknown config\.optim\.name, 'adam'"):
        make_optimizer(config, lambda _: 1.0, Model())


def test_adamw_with_clipping_and_masked_decay():
    config = default_config("vit_ti16").optim
    config.update(b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1, grad_clip_norm=1.0)
    params = {"kernel": np.asarray([1.0, -2.0]), "bias": np.asarray([0.5])}
    optimizer = make_optimizer(config, lambda _: 0.01, Model(decay={"kernel": True, "bias": False}))
    state = optimizer.init(params)
    found, expected = params, {k: v.copy() for k, v in params.items()}
    m, v = ({k: np.zeros_like(x) for k, x in params.items()} for _ in range(2))
    rng = np.random.default_rng(0)
    for step in range(1, 6):
        grads = {k: rng.normal(size=x.shape) * 3 for k, x in params.items()}
        updates, state = optimizer.update(grads, state, found)
        found = optax.apply_updates(found, updates)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for k in params:
            g = grads[k] / max(norm, 1.0)
            m[k] = 0.8 * m[k] + 0.2 * g
            v[k] = 0.95 * v[k] + 0.05 * g**2
            update = (m[k] / (1 - 0.8**step)) / (np.sqrt(v[k] / (1 - 0.95**step)) + 1e-6)
            decay = 0.1 * expected[k] if k == "kernel" else 0
            expected[k] = expected[k] - 0.01 * (update + decay)
    for k in params:
        np.testing.assert_allclose(found[k], expected[k], rtol=1e-5)


def test_project_clips_what_has_bounds():
    params = {"scale": jnp.asarray(7.0), "kernel": jnp.asarray([-9.0, 9.0])}
    found = jax.jit(lambda p: project(p, {"scale": (0.0, 4.6), "kernel": None}))(params)
    np.testing.assert_allclose(found["scale"], 4.6)
    np.testing.assert_array_equal(found["kernel"], [-9.0, 9.0])
