"""Optimizers against formulas written out in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.training.freezing import frozen_mask
from vit_jax.training.optimizer_zoo import matrix_dimensions
from vit_jax.training.optimizers import OPTIMIZERS, make_optimizer, parse_optim, scale_by_layer
from vit_jax.training.step import clip_to_bounds


class Model(ModelDef):
    """A model that has only metadata, by key."""

    def __init__(self, **trees):
        self._trees = trees

    def metadata(self, key):
        return self._trees[key]

    def layers_above(self):
        return self._trees["layers_above"]


def test_muon_orthogonalises_each_matrix_of_a_stack():
    """Singular values of the momentum become nearly equal, its singular vectors stay.

    Five Newton-Schulz iterations end between 0.68 and 1.13; updates have the size of AdamW's.
    """
    optim = parse_optim({"name": "muon", "b1": 0.9, "b2": 0.95})
    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 6, 3, 2, 5), "bias": (2, 4)}
    params = {k: np.zeros(s, np.float32) for k, s in shapes.items()}
    grads = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    model = Model(
        decay={"kernel": True, "bias": False},
        axes={"kernel": ("layers", "embed", "qkv", "heads", "head_dim"), "bias": ("layers", "mlp")},
    )
    optimizer = make_optimizer(optim, lambda _: 1.0, model)
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


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "adamww"}, r"unknown config\.optim\.name, 'adamww'; did you mean 'adamw'"),
        (
            {"nesterov": True},
            r"config\.optim\.nesterov does not apply to the optimizer 'adamw': it is a key of sgd; "
            "keys of adamw: b1, b2, eps, mu_dtype",
        ),
        ({"name": "sgd", "b1": 0.9}, "it is a key of adamw, muon, lamb, lion; keys of sgd: mom"),
        ({"name": "sgd", "momentun": 0.9}, r"did you mean 'config\.optim\.momentum'"),
        ({"name": "adabelief", "momentum": 0.9}, "does not apply to the optimizer 'adabelief'"),
        ({"lr": "1e-3"}, "config.optim.lr='1e-3': expected float"),
        ({"mu_dtype": "bfloat17"}, "did you mean 'bfloat16'"),
        ({"name": "no_such_module:adam"}, "cannot be imported"),
    ],
)
def test_wrong_keys(block, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(parse_optim(block), lambda _: 1.0, Model(decay=True))


def test_keys_of_a_block_and_back():
    optim = parse_optim({"name": "sgd", "nesterov": True, "freeze": ["head/.*"], "lr": 1})
    assert (optim.optimizer.nesterov, optim.optimizer.momentum) == (True, 0.9)
    assert (optim.shared.freeze, optim.shared.weight_decay) == (("head/.*",), 0.0)
    assert parse_optim(optim.as_block()) == optim


def test_adamw_with_clipping_and_masked_decay():
    optim = parse_optim(
        {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.1, "grad_clip_norm": 1.0}
    )
    params = {"kernel": np.asarray([1.0, -2.0]), "bias": np.asarray([0.5])}
    optimizer = make_optimizer(optim, lambda _: 0.01, Model(decay={"kernel": True, "bias": False}))
    found, expected = jax.tree.map(np.float32, params), {k: v.copy() for k, v in params.items()}
    state = optimizer.init(found)
    m, v = ({k: np.zeros_like(x) for k, x in params.items()} for _ in range(2))
    rng = np.random.default_rng(0)
    for step in range(1, 6):
        grads = {k: rng.normal(size=x.shape) * 3 for k, x in params.items()}
        updates, state = optimizer.update(jax.tree.map(np.float32, grads), state, found)
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


def test_only_parameters_with_bounds_are_clipped():
    params = {"scale": jnp.asarray(7.0), "kernel": jnp.asarray([-9.0, 9.0])}
    found = jax.jit(lambda p: clip_to_bounds(p, {"scale": (0.0, 4.6), "kernel": None}))(params)
    np.testing.assert_allclose(found["scale"], 4.6)
    np.testing.assert_array_equal(found["kernel"], [-9.0, 9.0])


def adam(state, g, keys):
    b1, b2 = keys.get("b1", 0.9), keys.get("b2", 0.999)
    state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
    t = state["t"] = state.get("t", 0) + 1
    m, v = state["m"] / (1 - b1**t), state["v"] / (1 - b2**t)
    return m / (np.sqrt(v) + keys.get("eps", 1e-8))


def lamb(state, g, p, decay, keys):
    update = adam(state, g, keys) + decay * p
    return update * np.linalg.norm(p) / np.linalg.norm(update)


def lars(state, g, p, decay, keys):
    g = g + decay * p
    if p.ndim > 1:
        g = g * 0.001 * np.linalg.norm(p) / np.linalg.norm(g)
    state["m"] = keys["momentum"] * state.get("m", 0) + g
    return state["m"]


def lion(state, g, p, decay, keys):
    m = state.get("m", np.zeros_like(g))
    state["m"] = keys["b2"] * m + (1 - keys["b2"]) * g
    return np.sign(keys["b1"] * m + (1 - keys["b1"]) * g) + decay * p


def sgd(state, g, p, decay, keys):
    g = g + decay * p
    state["m"] = keys["momentum"] * state.get("m", 0) + g
    return g + keys["momentum"] * state["m"] if keys.get("nesterov") else state["m"]


def adafactor(state, g, p, decay, keys):
    """Shazeer and Stern 2018, algorithm 4, without clipping and relative steps."""
    t = state["t"] = state.get("t", 0) + 1
    b2 = min(keys["b2_cap"], 1 - t**-0.8)
    squares = g**2 + 1e-30
    if g.ndim == 2 and min(g.shape) >= 32:
        rows = state["r"] = b2 * state.get("r", 0) + (1 - b2) * squares.mean(1)
        columns = state["c"] = b2 * state.get("c", 0) + (1 - b2) * squares.mean(0)
        v = rows[:, None] * columns[None, :] / rows.mean()
    else:
        v = state["v"] = b2 * state.get("v", 0) + (1 - b2) * squares
    state["m"] = keys["momentum"] * state.get("m", 0) + (1 - keys["momentum"]) * g / np.sqrt(v)
    return state["m"] + decay * p


def adabelief(state, g, p, decay, keys):
    """Zhuang et al. 2020, algorithm 1, as in optax; decay decoupled."""
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = 0.8 * state.get("m", 0) + 0.2 * g
    state["s"] = 0.95 * state.get("s", 0) + 0.05 * (g - m) ** 2 + 1e-16
    m, s = m / (1 - 0.8**t), state["s"] / (1 - 0.95**t)
    return m / (np.sqrt(s) + keys["eps"]) + decay * p


def adamw(state, g, p, decay, keys):
    return adam(state, g, keys) + decay * p


def signed(state, g, p, decay, keys):
    return np.sign(g) + decay * p


def sign_of(scale: float = 1.0) -> optax.GradientTransformation:
    """An optimizer of one's own: a transformation without a learning rate."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda g: jnp.sign(g) * scale, updates))


ADAM = {"b1": 0.8, "b2": 0.95}
STEPS = {
    "lamb": (lamb, {"name": "lamb", **ADAM, "eps": 1e-6}),
    "lars": (lars, {"name": "lars", "momentum": 0.8}),
    "lion": (lion, {"name": "lion", **ADAM}),
    "sgd": (sgd, {"name": "sgd", "momentum": 0.8}),
    "nesterov": (sgd, {"name": "sgd", "momentum": 0.8, "nesterov": True}),
    "adafactor": (adafactor, {"name": "adafactor", "momentum": 0.8, "b2_cap": 0.95}),
    # Of optax: without and with a weight decay of its own, and a transformation alone.
    "adabelief": (adabelief, {"name": "adabelief", **ADAM, "eps": 1e-6}),
    "optax's adamw": (adamw, {"name": "optax:adamw", **ADAM, "eps": 1e-6}),
    "scale_by_adam": (adamw, {"name": "scale_by_adam", **ADAM, "eps": 1e-6}),
    "one's own": (signed, {"name": f"{__name__}:sign_of"}),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_by_hand(name):
    """Four steps of each optimizer, with layer-wise learning rates; only matrices are decayed."""
    by_hand, keys = STEPS[name]
    optim = parse_optim({**keys, "weight_decay": 0.1, "layer_decay": 0.5})
    rng = np.random.default_rng(1)
    expected = {"kernel": rng.normal(size=(40, 33)), "bias": rng.normal(size=40)}
    found = {k: x.astype(np.float32) for k, x in expected.items()}
    above = {"kernel": 2, "bias": 0}
    model = Model(decay={"kernel": True, "bias": False}, layers_above=above)

    def schedule(step):
        return 0.03 / (1 + step)

    optimizer = make_optimizer(optim, schedule, model)
    state, states = optimizer.init(found), {k: {} for k in found}
    for step in range(4):
        grads = {k: rng.normal(size=x.shape) for k, x in expected.items()}
        updates, state = optimizer.update(grads, state, found)
        found = optax.apply_updates(found, updates)
        for k, p in expected.items():
            decay = 0.1 if p.ndim > 1 else 0.0
            update = by_hand(states[k], grads[k], p, decay, keys)
            expected[k] = p - schedule(step) * 0.5 ** above[k] * update
    for k in expected:
        np.testing.assert_allclose(found[k], expected[k], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS.table)
def test_first_moment_in_bfloat16(name):
    optim = parse_optim({"name": name, "mu_dtype": "bfloat16"})
    model = Model(decay={"x": True}, axes={"x": ("embed", "mlp")})
    state = make_optimizer(optim, lambda _: 1.0, model).init({"x": jnp.ones((4, 4))})
    moments = [x.dtype for x in jax.tree.leaves(state) if x.shape == (4, 4)]
    assert moments.count(jnp.bfloat16) == 1


def above(name):
    spec = registry.model_spec(name)
    model = ModelDef(spec.architecture)
    return {
        path: np.ravel(x).tolist()
        for path, x in flatten_dict(model.layers_above(), sep="/").items()
    }


def test_layers_of_mae_b():
    """MAE's table (He et al. 2022, util/lr_decay.py): 0.65^(12 - i) for block i of 12."""
    found = above("deit_b16")
    assert found["transformer/blocks/attention/out/kernel"] == [12 - i for i in range(12)]
    first = ("patch_embed/kernel", "patch_embed/bias", "class_token", "positions")
    assert [found[path] for path in first] == [[13]] * 4
    assert [found[path] for path in ("norm/scale", "head/kernel", "head/bias")] == [[0]] * 3
    assert max(found.values()) == [13]


def test_layers_of_swin_t():
    """SimMIM's table (get_swin_layer), as layers above: 13 - id of depths 2-2-6-2."""
    found = above("swin_t")
    assert found["stage0/blocks/norm1/scale"] == [12, 11]
    assert found["stage1/merging/reduction/kernel"] == [11]
    assert found["stage1/blocks/norm1/scale"] == [10, 9]
    assert found["stage2/merging/norm/scale"] == [9]
    assert found["stage2/blocks/norm1/scale"] == [8, 7, 6, 5, 4, 3]
    assert found["stage3/blocks/attention/bias_table"] == [2, 1]
    assert found["patch_embed/kernel"] == found["patch_norm/bias"] == [13]
    assert found["norm/scale"] == found["head/kernel"] == [0]


def test_layers_of_other_families():
    clip, resnet, mae = above("clip_vit_emoji"), above("resnet50"), above("mae_vit_b16")
    depth = registry.model_spec("clip_vit_emoji").architecture.text.depth
    assert clip["text/transformer/blocks/norm1/scale"] == list(range(depth, 0, -1))
    assert clip["text/token_embed/embedding"] == [depth + 1]
    assert clip["logit_scale"] == clip["image_projection/kernel"] == [0]
    assert resnet["stem_conv/kernel"] == resnet["stem_norm/mean"] == [17]
    assert resnet["stage0/first/conv1/kernel"] == [16]
    assert resnet["stage3/rest/conv1/kernel"] == [2, 1]
    assert mae["image/transformer/blocks/norm1/scale"] == list(range(12, 0, -1))
    assert mae["decoder/blocks/norm1/scale"] == [0]


def test_layer_decay_scales_each_layer_of_a_stack():
    model = Model(layers_above={"stack": np.asarray([[2], [1]]), "head": 0})
    transform = scale_by_layer(0.65, model)
    updates = {"stack": jnp.ones((2, 3)), "head": jnp.ones(2)}
    found, _ = transform.update(updates, transform.init(updates), updates)
    np.testing.assert_allclose(found["stack"], [[0.65**2] * 3, [0.65] * 3], rtol=1e-6)
    np.testing.assert_array_equal(found["head"], [1, 1])
    with pytest.raises(UserError, match=r"layer_decay=1.5: expected a number in \(0, 1\]"):
        scale_by_layer(1.5, model)


def test_factors_of_paths_are_multiplied_also_beside_frozen_parameters():
    keys = {
        "name": "sgd",
        "momentum": 0.0,
        "lr_factors": (("transformer/.*", 0.5), (".*bias", 0.2)),
    }
    model = tiny_vit()
    frozen = frozen_mask(("positions",), model)
    optimizer = make_optimizer(parse_optim(keys), lambda _: 1.0, model, frozen)
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), model.shapes())
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    for path, update in flatten_dict(updates, sep="/").items():
        factor = (0.5 if path.startswith("transformer/") else 1) * (0.2 if "bias" in path else 1)
        np.testing.assert_allclose(update, 0 if path == "positions" else -factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ((("hed/.*", 0.1),), "no path matches 'hed/.*'; did you mean 'head/"),
        ((("head/.*", 0.0),), "is 0.0: expected a positive number; config.optim.freeze"),
        ((("head/.*",),), "config.optim.lr_factors"),
        ((("head/.*", "fast"),), "config.optim.lr_factors"),
    ],
)
def test_wrong_factors(factors, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(parse_optim({"lr_factors": factors}), lambda _: 1.0, tiny_vit())


def tiny_vit():
    spec = registry.model_spec("vit_ti16")
    return ModelDef(dataclasses.replace(spec.architecture, depth=2, width=6))


@pytest.mark.parametrize("name", [*OPTIMIZERS.table, "adabelief"])
def test_frozen_parameters_have_no_state_and_no_update(name):
    model = tiny_vit()
    frozen = frozen_mask(("transformer/.*", "positions"), model)
    keys = {"name": name, "weight_decay": 0.1, "grad_clip_norm": 1.0, "layer_decay": 0.9}
    optimizer = make_optimizer(parse_optim(keys), lambda _: 1.0, model, frozen)
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), model.shapes())
    state = jax.eval_shape(optimizer.init, params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert not [path for path in paths if "blocks" in path or "positions" in path]
    assert any("head" in path for path in paths)
    updates = jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p)[0])(params)
    moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
    assert flatten_dict(moved) == {path: not f for path, f in flatten_dict(frozen).items()}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("hed/.*",), "no path matches 'hed/.*'; did you mean 'head/"),
        (("head",), "no path matches 'head'"),
        (("head/(",), "is not a regular expression"),
        ((".*",), "leaves nothing to train"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything(patterns, message):
    with pytest.raises(UserError, match=message):
        frozen_mask(patterns, tiny_vit())
