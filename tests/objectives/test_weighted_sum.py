"""Sums of objectives, with stand-ins whose losses are plain numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contexts import build, context, small_vit

from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef
from vit_jax.objectives.base import Objective
from vit_jax.objectives.weighted_sum import weight_at
from vit_jax.training.state import TrainState
from vit_jax.training.step import make_train_step

NAME = "test_weighted_sum:Power"


class Power(Objective):
    """Loss x^exponent of the parameter x, plus its constants and noise in training."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        exponent: int = 2
        constants: tuple[int, ...] = ()
        noise: bool = False
        field: str = "image"

    def __init__(self, config, context):
        super().__init__(config, context)
        self.fields = ("image", config.field)
        self.is_mean_over_examples = config.field == "image"
        self.abstract_constants = self.load_constants()

    def load_constants(self):
        return tuple({"x": value} for value in self.config.constants)

    def __call__(self, model, batch, rng, *constants):
        noise = jax.random.normal(rng) if self.config.noise else 0
        return model**self.config.exponent + total(constants) + noise, {"x": model}

    def evaluate(self, model, batch, *constants):
        return 100 * model + total(constants), {}


class Follow(Power):
    """Squared distance from the moving average of the parameter."""

    reads_state = ("ema",)

    def __call__(self, model, batch, rng, ema, *constants):
        return (model - ema["x"]) ** 2 + total(constants), {}


class Anchored(Follow):
    """Distance from an earlier moving average, renewed before steps that the exponent divides."""

    reads_state = ("ema", "anchor")

    def renews_anchor(self, step, total_steps):
        return step % self.config.exponent == 0

    def __call__(self, model, batch, rng, ema, anchor, *constants):
        return model - anchor["x"] + total(constants), {}


def total(constants):
    return sum(each["x"] for each in constants)


def summed(**parts):
    return build("weighted_sum", context(small_vit()), parts=parts)


def test_losses_weights_and_constants():
    objective = summed(
        a={"name": NAME, "constants": (10, 20)},
        b={"name": NAME, "weight": 0.5, "exponent": 3, "constants": (5,), "field": "label"},
    )
    assert objective.fields == ("image", "label")
    assert not objective.is_mean_over_examples
    assert objective.config.parts["b"] == {
        "name": NAME, "weight": 0.5, "exponent": 3, "constants": (5,), "noise": False,
        "field": "label",
    }  # fmt: skip
    constants = objective.load_constants()
    assert objective.abstract_constants == constants == ({"x": 10}, {"x": 20}, {"x": 5})

    def loss(x):
        return objective(x, {"image": x}, jax.random.key(0), *constants)

    (found, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.float32(3))
    assert float(found) == 9 + 30 + 0.5 * (27 + 5)
    assert float(gradient) == 2 * 3 + 0.5 * 3 * 9
    assert {k: float(v) for k, v in metrics.items()} == {
        "a/loss": 39, "a/x": 3, "b/loss": 32, "b/x": 3,
    }  # fmt: skip
    found, metrics = objective.evaluate(jnp.float32(3), {"image": jnp.zeros(())}, *constants)
    assert float(found) == 300 + 30 + 0.5 * (300 + 5)
    assert metrics.keys() == {"a/loss", "b/loss"}


def test_parts_that_read_the_moving_average():
    objective = summed(
        a={"name": NAME, "constants": (10,)},
        b={"name": "test_weighted_sum:Follow", "constants": (5,)},
    )
    constants = {"x": 1.0}, *objective.load_constants()
    assert objective.reads_state == ("ema",)
    assert float(objective(jnp.float32(3), {}, jax.random.key(0), *constants)[0]) == 9 + 10 + 4 + 5
    assert summed(a={"name": NAME}).reads_state == ()


def test_parts_share_an_anchor():
    name = "test_weighted_sum:Anchored"
    objective = summed(
        a={"name": "test_weighted_sum:Follow"},
        b={"name": name, "exponent": 2, "constants": (5,)},
        c={"name": name, "exponent": 3},
    )
    assert objective.reads_state == ("ema", "anchor")
    constants = {"x": 1.0}, {"x": 2.0}, *objective.load_constants()
    found, _ = objective(jnp.float32(4), {}, jax.random.key(0), *constants)
    assert float(found) == 9 + (2 + 5) + 2
    renewed = [bool(objective.renews_anchor(jnp.int32(step), 7)) for step in range(7)]
    assert renewed == [True, False, True, True, True, False, True]


def test_a_part_of_no_weight_is_left_out():
    objective = summed(
        a={"name": NAME},
        b={"name": "test_weighted_sum:Follow", "weight": 0.0, "field": "label"},
    )
    assert (objective.fields, objective.reads_state) == (("image",), ())
    assert objective(jnp.float32(3), {}, jax.random.key(0))[1].keys() == {"a/loss", "a/x"}


def test_weights_that_change():
    points = ((0.0, 1.0), (0.5, 0.0), (0.8, 0.0), (0.8, 2.0), (0.9, 3.0))
    expected = {-1: 1, 0: 1, 0.25: 0.5, 0.5: 0, 0.79: 0, 0.8: 2, 0.85: 2.5, 0.9: 3, 1: 3}
    objective = summed(a={"name": NAME}, b={"name": NAME, "weight": points})

    @jax.vmap
    def loss(progress):
        found, metrics = objective(jnp.float32(3), {"progress": progress}, jax.random.key(0))
        return found, metrics["b/weight"], weight_at(points, progress)

    found, *weights = jax.jit(loss)(jnp.asarray([*expected], jnp.float32))
    wanted = np.asarray([*expected.values()])
    np.testing.assert_allclose(weights, [wanted, wanted], atol=1e-6)
    np.testing.assert_allclose(found, 9 + 9 * wanted, rtol=1e-5)
    # Without progress, as in evaluation, the last weight applies.
    assert float(objective(jnp.float32(3), {}, jax.random.key(0))[0]) == 9 + 3 * 9


def test_the_step_reports_its_progress():
    model, sgd = ModelDef(small_vit()), optax.sgd(0.0)

    def loss(module, batch, rng):
        return batch["progress"] * jnp.mean(module.norm.scale[...]), {}

    options = {"seed": 0, "total_steps": 4, "ema_decay": lambda step: 0.0}
    step = jax.jit(make_train_step(model, loss, sgd, lambda count: 0.0, **options))
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), model.shapes())
    state = TrainState(jnp.asarray(2), params, sgd.init(params), None)
    assert float(step(state, {})[1]["loss"]) == 0.5


def test_parts_draw_other_numbers():
    objective = summed(a={"name": NAME, "noise": True}, b={"name": NAME, "noise": True})
    _, metrics = objective(jnp.float32(0), {}, jax.random.key(0))
    assert float(metrics["a/loss"]) != float(metrics["b/loss"])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, r"config\.objective\.parts is empty: expected objectives"),
        ({"a": 3}, r"config\.objective\.parts\.a=3: expected the keys of an objective"),
        ({"contrastiv": {}}, r"in config\.objective\.parts\.contrastiv .*did you mean 'contrast"),
        ({"a": {"name": NAME, "weight": "x"}}, r"parts\.a\.weight=\('x',\): expected float, or"),
        ({"a": {"name": NAME, "weight": ((0.5, 1), (0.1, 0))}}, "in the order of progress"),
        ({"masked_reconstruction": {}}, "needs a model with a decoder"),
    ],
)
def test_errors(parts, message):
    with pytest.raises(UserError, match=message):
        summed(**parts)
