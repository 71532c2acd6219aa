"""Learning rates against the published formulas."""

import math

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.training.optimizers import make_schedule, parse_optim


def schedule_of(*, warmup_steps=10, total_steps=110, cooldown_steps=0, **keys):
    return make_schedule(
        parse_optim({"lr": 0.3, **keys}),
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        cooldown_steps=cooldown_steps,
    )


@pytest.mark.parametrize("min_lr", [0.0, 0.06])
@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("cosine", lambda t: 0.5 * (1 + math.cos(math.pi * t))),
        ("linear", lambda t: 1 - t),
        ("constant", None),
    ],
)
def test_decay_after_the_warm_up(name, decayed, min_lr):
    schedule = schedule_of(schedule=name, min_lr=min_lr)
    for step in (0, 5, 10, 35, 60, 109, 110):
        expected = 0.03 * step
        if step >= 10:
            expected = min_lr + (0.3 - min_lr) * decayed((step - 10) / 100) if decayed else 0.3
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-8)


def test_rsqrt_with_warm_up_and_cooldown():
    """As in big_vision: base / sqrt((step + timescale - warmup) / timescale), then a line to 0."""
    schedule = schedule_of(
        schedule="rsqrt", rsqrt_timescale=40, warmup_steps=10, total_steps=400, cooldown_steps=100
    )
    for step in (0, 3, 10, 11, 50, 299, 300, 350, 399, 400):
        warm = step / 10 if step < 10 else ((step + 40 - 10) / 40) ** -0.5
        expected = 0.3 * warm * min(1, (400 - step) / 100)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-8)


def test_rsqrt_does_not_fall_below_the_minimum():
    schedule = schedule_of(schedule="rsqrt", rsqrt_timescale=1, min_lr=0.1, total_steps=1000)
    np.testing.assert_allclose(schedule(900), 0.1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"warmup_steps": 110}, "warm-up of 110 steps is not shorter than the run of 110"),
        ({"cooldown_steps": 101}, r"warm-up and cooldown of 10 \+ 101 steps are longer"),
        ({"min_lr": 0.4}, "min_lr=0.4: expected a number from 0 to lr=0.3"),
        ({"schedule": "rsqrt", "rsqrt_timescale": 0}, "expected a positive number"),
        (
            {"rsqrt_timescale": 10},
            "rsqrt_timescale does not apply to the schedule 'cosine': it is a key of rsqrt",
        ),
    ],
)
def test_wrong_schedules(keys, message):
    with pytest.raises(UserError, match=message):
        schedule_of(**keys)
