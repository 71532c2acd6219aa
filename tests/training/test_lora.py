"""LoRA against adapters that are never merged, and in a run whose readers see ordinary weights."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers import assert_trees_equal, metrics_of, tiny_classifier
from vit_jax.errors import UserError
from vit_jax.evaluation import open_run
from vit_jax.experiment import build, train
from vit_jax.models.definition import ModelDef
from vit_jax.training.lora import Lora
from vit_jax.training.optimizers import frozen_parameters, make_optimizer, parse_optim

AXES = {
    "qkv": ("layers", "embed", "qkv", "heads", "head_dim"),
    "out": ("heads", "head_dim", "embed"),
    "bias": ("embed",),
}
SHAPES = {"qkv": (2, 6, 3, 2, 4), "out": (2, 4, 5), "bias": (5,)}
# Contraction of inputs (8, ...) with each matrix.
FORWARD = {"qkv": "ni,liqhd->nlqhd", "out": "nhd,hde->ne"}
KEYS = {"lora_rank": 2, "lora_alpha": 3.0, "lora_paths": ("qkv", "out"), "lora_full": ("bias",)}
SCALE = 1.5


class Layers(ModelDef):
    """A model that has only metadata."""

    def __init__(self):
        pass

    def shapes(self):
        return {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}

    def metadata(self, key, default=None):
        own = {"axes": AXES, "decay": {"qkv": True, "out": True, "bias": False}}
        return own.get(key, dict.fromkeys(SHAPES, default))

    def layers_above(self):
        return {"qkv": np.arange(2).reshape(2, 1, 1, 1, 1), "out": 0, "bias": 0}


def arrays(shapes, seed):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


def outputs(params, inputs):
    with jax.default_matmul_precision("highest"):
        found = {k: jnp.einsum(FORWARD[k], inputs[k], params[k]) for k in FORWARD}
    return {**found, "out": found["out"] + params["bias"]}


def unmerged(base, adapters, inputs):
    """The outputs with A and B applied one after the other, each matrix of a batch by itself."""
    found = outputs({**base, "bias": adapters["bias"]}, inputs)
    a, b = adapters["qkv"]["a"], adapters["qkv"]["b"].reshape(2, 3, 2, 2, 4)
    low = jnp.einsum("ni,lqir->nlqr", inputs["qkv"], a)
    qkv = found["qkv"] + SCALE * jnp.einsum("nlqr,lqrhd->nlqhd", low, b)
    a = adapters["out"]["a"].reshape(2, 4, 2)
    low = jnp.einsum("nhd,hdr->nr", inputs["out"], a)
    return {"qkv": qkv, "out": found["out"] + SCALE * low @ adapters["out"]["b"]}


@pytest.mark.parametrize(
    ("keys", "reference"),
    [
        (
            {"name": "sgd", "momentum": 0.9, "grad_clip_norm": 1.0},
            optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale(-0.05)),
        ),
        (
            {"name": "adamw", "weight_decay": 0.1, "eps": 1e-3},
            optax.adamw(
                0.05, eps=1e-3, weight_decay=0.1,
                mask=lambda tree: {k: k != "bias" for k in tree},
            ),
        ),
    ],
)  # fmt: skip
def test_merged_steps_equal_adapters_that_are_never_merged(keys, reference):
    inputs = arrays({"qkv": (8, 6), "out": (8, 2, 4)}, 1)
    targets = arrays({"qkv": (8, 2, 3, 2, 4), "out": (8, 5)}, 2)
    params = arrays(SHAPES, 0)
    base = dict(params)
    optimizer = make_optimizer(parse_optim({**keys, **KEYS}), lambda _: 0.05, Layers())
    state = optimizer.init(params)
    adapters, its_state = state.trained, reference.init(state.trained)
    assert not adapters["qkv"]["b"].any()
    assert len(np.unique(adapters["qkv"]["a"])) == adapters["qkv"]["a"].size

    def loss(found):
        return sum(jnp.mean((found[k] - targets[k]) ** 2) for k in targets)

    @jax.jit
    def both(params, state, adapters, its_state):
        grads = jax.grad(lambda p: loss(outputs(p, inputs)))(params)
        updates, state = optimizer.update(grads, state, params)
        grads = jax.grad(lambda a: loss(unmerged(base, a, inputs)))(adapters)
        steps, its_state = reference.update(grads, its_state, adapters)
        return (
            optax.apply_updates(params, updates), state,
            optax.apply_updates(adapters, steps), its_state,
        )  # fmt: skip

    for _ in range(10):
        params, state, adapters, its_state = both(params, state, adapters, its_state)
    found, expected = outputs(params, inputs), unmerged(base, adapters, inputs)
    for name in FORWARD:
        scale = np.abs(expected[name]).max()
        assert np.abs(expected[name] - outputs(base, inputs)[name]).max() > 0.01 * scale
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5 * scale)
    # Merged equals unmerged, with the very same adapters.
    found, expected = outputs(params, inputs), unmerged(base, state.trained, inputs)
    for name in FORWARD:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6 * 8)
    ranks = np.linalg.matrix_rank(
        np.moveaxis(np.asarray(params["qkv"] - base["qkv"]), 2, 1).reshape(2, 3, 6, 8), tol=1e-4
    )
    assert (ranks == 2).all()


def test_layer_decay_and_factors_apply_to_adapters():
    params, grads = arrays(SHAPES, 0), arrays(SHAPES, 1)
    keys = {**KEYS, "name": "sgd", "momentum": 0.0}
    after = {}
    for name, more in {
        "plain": {}, "decayed": {"layer_decay": 0.5}, "half": {"lr_factors": (("qkv/.*", 0.5),)},
    }.items():  # fmt: skip
        optimizer = make_optimizer(parse_optim({**keys, **more}), lambda _: 1.0, Layers())
        _, state = optimizer.update(grads, optimizer.init(params), params)
        after[name] = np.asarray(state.trained["qkv"]["b"])
    assert after["plain"].any()
    np.testing.assert_allclose(after["decayed"][1], 0.5 * after["plain"][1], rtol=1e-6)
    np.testing.assert_array_equal(after["decayed"][0], after["plain"][0])
    np.testing.assert_allclose(after["half"], 0.5 * after["plain"], rtol=1e-6)


def test_what_is_frozen():
    assert frozen_parameters(parse_optim(KEYS), Layers()) == dict.fromkeys(SHAPES, False)
    few = parse_optim({"lora_rank": 1, "lora_paths": ("out",)})
    assert frozen_parameters(few, Layers()) == {"qkv": True, "out": False, "bias": True}
    assert Lora(few.shared, Layers()).shapes("out")["a"].shape == (8, 1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lora_rank": -1}, "lora_rank=-1: expected 0 or more"),
        ({"lora_rank": 2}, "lora_rank=2 needs config.optim.lora_paths"),
        ({"lora_rank": 9, "lora_paths": ("out",)}, "expected at most 5, the rank of out"),
        ({"lora_rank": 2, "lora_paths": ("b.*",)}, r"expected matrices; found bias of the shape"),
        ({"lora_rank": 2, "lora_paths": ("x",)}, "parameter in config.optim.lora_paths"),
        ({"lora_paths": ("out",)}, "lora_paths and lora_full need config.optim.lora_rank"),
        ({**KEYS, "freeze": ("out",)}, "freeze and lora_rank exclude each other"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(UserError, match=message):
        frozen_parameters(parse_optim(keys), Layers())


@pytest.mark.release
def test_readers_of_a_run_see_ordinary_weights(tmp_path):
    """An interrupted run equals an uninterrupted one."""
    config = tiny_classifier()
    config.optim.update(lora_rank=2, lora_paths=(".*/attention/.*kernel",), lora_full=("head/.*",))
    config.checkpoint_steps = 5
    config.checkpoint_percent = 0.0
    start = jax.device_get(build(config, workdir=tmp_path / "new").init_state().params)
    train(config, tmp_path / "run")
    found = jax.device_get(open_run(tmp_path / "run").params)
    adapted = 0
    for path, x in flatten_dict(found, sep="/").items():
        before = flatten_dict(start, sep="/")[path]
        if path.endswith("attention/qkv/kernel"):
            change = np.moveaxis(x - before, -3, -4).reshape(-1, 3, 16, 16)
            assert (np.linalg.matrix_rank(change, tol=1e-5) == 2).all()
            adapted += 1
        elif path.startswith("head/") or path.endswith("attention/out/kernel"):
            assert (x != before).any(), path
        else:
            np.testing.assert_array_equal(x, before, err_msg=path)
    assert adapted == 1
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run", again)
    (again / "result.json").unlink()
    shutil.rmtree(again / "checkpoints" / "10")
    train(config, again)
    assert_trees_equal(jax.device_get(open_run(again).params), found)
    assert metrics_of(again) == metrics_of(tmp_path / "run")
    assert json.loads((again / "config.json").read_text())["optim"]["lora_rank"] == 2
