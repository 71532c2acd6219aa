"""Swin against timm's activations, its cost, and invariance to execution."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef
from vit_jax.models.swin import stage as swin_stage
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.swin.windows import Windows, resize_bias_table
from vit_jax.models.vit.model import ViTConfig

PATH = pathlib.Path(__file__).parent.parent / "fixtures" / "weights" / "swin_tiny.safetensors"
TINY = SwinConfig(
    image_size=32,
    patch_size=4,
    width=8,
    depths=(5, 2),
    num_heads=(2, 4),
    window_size=4,
    num_classes=5,
)
FIXED = dataclasses.replace(TINY, fit_windows=False)
# Two pairs of blocks to scan, and a block without a pair.
DROPPED = dataclasses.replace(
    TINY, image_size=16, depths=(5,), num_heads=(2,), window_size=2, drop_path=0.3
)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 44, 60, 3)), jnp.float32)


@pytest.fixture(scope="module")
def stored():
    return safetensors.numpy.load_file(PATH)


def norm(state, name):
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def linear(state, name):
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def block(state, name, heads):
    qkv, out = linear(state, f"{name}.attn.qkv"), linear(state, f"{name}.attn.proj")
    width = len(out["kernel"])
    return {
        "norm1": norm(state, f"{name}.norm1"),
        "attention": {
            "qkv": {
                "kernel": qkv["kernel"].reshape(width, 3, heads, -1),
                "bias": qkv["bias"].reshape(3, heads, -1),
            },
            "out": {"kernel": out["kernel"].reshape(heads, -1, width), "bias": out["bias"]},
            "bias_table": state[f"{name}.attn.relative_position_bias_table"],
        },
        "norm2": norm(state, f"{name}.norm2"),
        "mlp": {layer: linear(state, f"{name}.mlp.{layer}") for layer in ("fc1", "fc2")},
    }


def from_timm(state, config):
    params = {
        "patch_embed": {
            "kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
            "bias": state["patch_embed.proj.bias"],
        },
        "patch_norm": norm(state, "patch_embed.norm"),
        "norm": norm(state, "norm"),
        "head": linear(state, "head.fc"),
    }
    for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        blocks = [block(state, f"layers.{i}.blocks.{j}", heads) for j in range(depth)]
        params[f"stage{i}"] = {"blocks": jax.tree.map(lambda *x: np.stack(x), *blocks)}
        if i > 0:
            name = f"layers.{i}.downsample"
            params[f"stage{i}"]["merging"] = {
                "norm": norm(state, f"{name}.norm"),
                "reduction": {"kernel": state[f"{name}.reduction.weight"].T},
            }
    return jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def params(stored):
    params = from_timm(stored, TINY)
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == jax.tree.map(lambda x: x.shape, ModelDef(TINY).shapes())
    return params


def assert_close(found, expected, tolerance=1e-5):
    """Compares with a tolerance relative to the largest value."""
    scale = float(np.max(np.abs(expected)))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("prefix", "config"),
    [
        ("", TINY),
        ("", FIXED),
        ("fitted.", TINY),
        ("fixed.", FIXED),
        ("fitted_small.", TINY),
        ("fixed_small.", FIXED),
    ],
)
def test_equals_timm(stored, params, prefix, config):
    reference = {
        key.removeprefix(f"reference.{prefix}"): value
        for key, value in stored.items()
        if key.startswith(f"reference.{prefix}")
    }
    model = ModelDef(config)

    @jax.jit
    def outputs(params, images):
        module = model.bind(params)
        names = zip(("stage_0", "stage_1"), module.features(images, (0, -1)), strict=True)
        return {**dict(names), "pooled": module.encode_image(images), "logits": module(images)}

    found = outputs(params, jnp.asarray(reference["images"], jnp.float32))
    for name, value in found.items():
        assert_close(value, reference[name])


@pytest.mark.parametrize(
    ("method", "name"), [("geometric", "geometric"), ("bicubic_antialias", "bicubic")]
)
def test_resized_bias_table_equals_torch(stored, method, name):
    table = stored["layers.0.blocks.0.attn.relative_position_bias_table"]
    found = resize_bias_table(jnp.asarray(table), (4, 4), (6, 3), method)
    assert_close(found, stored[f"reference.table.{name}"])


def test_resizing_a_bias_table_of_another_window():
    table = jnp.zeros((49, 2))
    with pytest.raises(UserError, match="window of 5 x 4 has a bias table of 63 rows; found 49"):
        resize_bias_table(table, (5, 4), (6, 6), "bicubic")
    with pytest.raises(UserError, match="'bicubc'; did you mean 'bicubic'"):
        resize_bias_table(table, (4, 4), (6, 6), "bicubc")


def test_merging_windows_undoes_partition():
    windows = Windows((7, 10), size=(3, 4), shift=(1, 2))
    x = jnp.arange(2 * 7 * 10 * 3.0).reshape(2, 7, 10, 3)
    cut = windows.partition(x)
    assert cut.shape == (2, 9, 12, 3)
    np.testing.assert_array_equal(cut[1, 0, 0], x[1, 1, 2])
    np.testing.assert_array_equal(windows.merge(cut), x)


def test_mask_separates_regions_that_the_roll_joined():
    """Positions of a window attend to each other if the map has them within one window's size."""
    windows = Windows((6, 8), size=(3, 4), shift=(1, 2))
    places = np.stack(np.indices((6, 8)), -1)
    cut = np.asarray(windows.partition(jnp.asarray(places[None])))[0]
    near = (np.abs(cut[:, :, None] - cut[:, None]) < [3, 4]).all(-1)
    np.testing.assert_array_equal(windows.mask(), np.where(near, 0, -100))
    assert Windows((6, 8), size=(3, 4), shift=(0, 0)).mask() is None


def random_params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(scale=0.3, size=x.shape), jnp.float32), model.shapes()
    )


def loss_and_grads(model, params):
    def loss(params):
        return jnp.sum(jnp.sin(model.bind(params)(IMAGES, rng=jax.random.key(3))))

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def expected_grads():
    model = ModelDef(DROPPED)
    return loss_and_grads(model, random_params(model))


@pytest.mark.parametrize(
    "execution",
    [
        {"scan": False},
        pytest.param({"remat": "mlp"}, marks=pytest.mark.release),
        pytest.param({"remat": "dots"}, marks=pytest.mark.release),
        pytest.param({"remat": "full"}, marks=pytest.mark.release),
        pytest.param({"scan": False, "remat": "full"}, marks=pytest.mark.release),
    ],
)
def test_execution_changes_nothing(expected_grads, execution):
    """Loss and gradients agree for scan and every remat policy, with stochastic depth."""
    model = ModelDef(DROPPED, **execution)
    found = loss_and_grads(model, random_params(model))
    jax.tree.map(assert_close, found, expected_grads)


@pytest.mark.slow
def test_a_step_changes_every_parameter_of_every_block():
    model = ModelDef(dataclasses.replace(TINY, depths=(4, 1)))
    params = jax.jit(model.init)(jax.random.key(0))
    _, grads = loss_and_grads(model, params)
    for path, new in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda p, g: (p, p - 0.1 * g), params, grads),
        is_leaf=lambda x: isinstance(x, tuple),
    ):
        before, after = new
        layers = before if "blocks" in str(path) else before[None]
        changed = (layers != after.reshape(layers.shape)).reshape(len(layers), -1)
        assert changed.any(1).all(), path


@pytest.mark.release
def test_stochastic_depth_is_linear_over_all_blocks(monkeypatch):
    rates = []

    def record(x, rate, rng):
        rates.append(float(rate))
        return x

    monkeypatch.setattr(swin_stage, "drop_path", record)
    model = ModelDef(dataclasses.replace(TINY, drop_path=0.6), scan=False)
    model.bind(random_params(model))(IMAGES, rng=jax.random.key(0))
    np.testing.assert_allclose(rates, np.repeat(np.linspace(0, 0.6, 7), 2), rtol=1e-6)


def test_two_blocks_are_traced_regardless_of_depth():
    def size(depth, scan):
        config = dataclasses.replace(TINY, depths=(depth, 2))
        model = ModelDef(config, scan=scan)
        fn = lambda p: model.bind(p)(IMAGES)  # noqa: E731
        return len(str(jax.make_jaxpr(fn)(model.shapes())).splitlines())

    assert size(12, True) == size(2, True)
    assert size(12, False) > 2 * size(2, False)


def compiled_flops(config):
    """FLOPs of the unrolled model; the compiler counts the body of a loop once."""
    model = ModelDef(config, scan=False)
    image = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    forward = jax.jit(lambda params, images: model.bind(params)(images))
    return forward.lower(model.shapes(), image).compile().cost_analysis()["flops"]


@pytest.mark.release
def test_cost_is_linear_in_the_area_and_that_of_a_vit_is_not():
    """Fourfold area: fourfold FLOPs for Swin. The excess of ViT is attention, sixteenfold.

    For n patches f(n) = a n + b n^2, so that f(4 n) - 4 f(n) = 12 b n^2.
    """
    shape = {"patch_size": 4, "width": 16}
    swin = [
        compiled_flops(
            SwinConfig(image_size=size, depths=(2, 2), num_heads=(2, 2), window_size=4, **shape),
        )
        for size in (32, 64, 128)
    ]
    vit = [
        compiled_flops(
            ViTConfig(
                image_size=size,
                depth=2,
                num_heads=2,
                mlp_dim=64,
                class_token=False,
                pool="mean",
                **shape,
            ),
        )
        for size in (32, 64, 128)
    ]
    np.testing.assert_allclose([swin[1] / swin[0], swin[2] / swin[1]], 4, rtol=0.03)
    excess = [vit[1] - 4 * vit[0], vit[2] - 4 * vit[1]]
    assert vit[2] > 8 * vit[1]
    np.testing.assert_allclose(excess[1] / excess[0], 16, rtol=0.03)


def test_bfloat16_compute_keeps_float32_parameters_and_logits(stored, params):
    model = ModelDef(TINY, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(model.shapes())} == {jnp.dtype("float32")}
    module = model.bind(params)
    images = jnp.asarray(stored["reference.images"], jnp.float32)
    assert jax.eval_shape(module.encode_image, images).dtype == jnp.bfloat16
    logits = jax.jit(module)(images)
    assert logits.dtype == jnp.float32
    assert_close(logits, stored["reference.logits"], tolerance=0.05)


def test_metadata_covers_every_parameter():
    """Axes name each dimension; matrices decay, bias tables do not."""
    model = ModelDef(TINY)
    axes = model.metadata("axes")
    jax.tree.map(
        lambda a, x: len(a) == x.ndim or pytest.fail(f"{a} {x}"),
        axes,
        model.shapes(),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    blocks = model.metadata("decay")["stage1"]["blocks"]
    assert blocks["mlp"]["fc1"] == {"kernel": True, "bias": False}
    assert blocks["attention"]["bias_table"] is False
    assert axes["stage1"]["blocks"]["attention"]["bias_table"] == ("layers", "window", "heads")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30}, r"patch_size=4 does not divide image_size=\(30, 30\)"),
        ({"num_heads": (2,)}, r"num_heads=\(2,\): expected one number for each of the 2 stages"),
        ({"num_heads": (2, 5)}, "num_heads=5 does not divide width=16"),
        ({"depths": (2, 0)}, "depth=0 of a stage: expected a positive number"),
        ({"depths": (), "num_heads": ()}, "expected a number of blocks for each stage"),
        ({"window_size": 0}, "window_size=0 of a stage: expected a positive number"),
        ({"drop_path": 1.0}, r"drop_path=1.0: expected a fraction in \[0, 1\)"),
        ({"activation": "gelu_tan"}, "did you mean 'gelu_tanh'"),
    ],
)
def test_invalid_configs(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **changes)


def test_invalid_images_and_layers():
    model = ModelDef(TINY)
    module = model.bind(random_params(model))
    with pytest.raises(UserError, match="patch_size=4 does not divide images of 18 x 16 px"):
        module(jnp.zeros((1, 18, 16, 3)))
    with pytest.raises(UserError, match="layer 2 does not exist: this tower has 2 stages"):
        module.features(IMAGES, layers=(2,))
