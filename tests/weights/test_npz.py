"""Files of google-research/vision_transformer and of big_vision, in both directions."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.weights.activations import activations
from tests.weights.reference import DATA, PREFIX, format_of, relative_error
from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.positions import resize_positions
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.weights.big_vision import fixed_positions
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

# As in tests/fixtures/generators/make_npz.py; timm and open_clip have the exact GELU.
IMAGE = ViTConfig(image_size=16, patch_size=4, width=16, depth=3, num_heads=2, mlp_dim=24)
CLASS = dataclasses.replace(IMAGE, num_classes=5)
AFTER = dataclasses.replace(CLASS, prefix_positions=False)
MEAN = dataclasses.replace(CLASS, class_token=False, pool="mean")
MAP = dataclasses.replace(CLASS, class_token=False, pool="map")
SIGLIP = CLIPConfig(
    image=dataclasses.replace(MAP, num_classes=0),
    text=TextConfig(
        vocab_size=50,
        context_length=9,
        width=16,
        depth=2,
        num_heads=4,
        mlp_dim=32,
        activation="gelu",
        norm_epsilon=1e-6,
        causal=False,
        pool="last",
    ),
    embed_dim=16,
    image_projection=False,
    text_projection_bias=True,
    init_logit_bias=-10.0,
)
# File: format, architecture.
CASES = {
    "vit_jax": ("vit_jax_npz", CLASS),
    "big_vision_tok": ("big_vision", AFTER),
    "big_vision_gap": ("big_vision_scanned", MEAN),
    "big_vision_map": ("big_vision", MAP),
    "siglip": ("big_vision", SIGLIP),
    "siglip_scanned": ("big_vision_scanned", SIGLIP),
}


@pytest.fixture(scope="module", params=CASES)
def name(request):
    return request.param


def read_all(path):
    file = open_weights(path)
    return {key: file.read(key) for key in file}


def weights(name):
    tensors = read_all(DATA / f"npz_{name}.npz")
    return {key: value for key, value in tensors.items() if not key.startswith(PREFIX)}


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes tensors to a file."""

    def write(tensors, name="weights.npz"):
        write_tensors(tmp_path / name, tensors, "npz")
        return tmp_path / name

    return write


def assert_same(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_same_activations(name, write):
    expected = {
        key.removeprefix(PREFIX): value
        for key, value in read_all(DATA / f"npz_{name}.npz").items()
        if key.startswith(PREFIX)
    }
    path = write(weights(name))
    kind, architecture = CASES[name]
    assert format_of(path) == kind
    model = ModelDef(architecture)
    compute = jax.jit(lambda params, given: activations(model.bind(params), given))
    found = compute(load_weights(path, model), expected)
    assert found.keys() == expected.keys() - {"images", "tokens"}
    errors = {k: relative_error(np.asarray(v), expected[k]) for k, v in found.items()}
    assert max(errors.values()) < 1e-5, errors


def test_round_trip_is_exact(name, write, tmp_path):
    kind, architecture = CASES[name]
    model = ModelDef(architecture)
    expected = weights(name)
    save_weights(load_weights(write(expected), model), model, tmp_path / "out.npz", kind)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert set(found) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, strict=True)


def test_stacked_and_numbered_blocks_are_the_same_model(write, tmp_path):
    model = ModelDef(SIGLIP)
    params = load_weights(write(weights("siglip")), model)
    save_weights(params, model, tmp_path / "stacked.npz", "big_vision_scanned")
    stacked, numbered = read_all(tmp_path / "stacked.npz"), weights("siglip")
    key = "Encoder_0/encoderblock{}/MultiHeadDotProductAttention_0/value/kernel"
    np.testing.assert_array_equal(
        stacked[f"txt/{key.format('')}"],
        np.stack([numbered[f"txt/{key.format(f'_{i}')}"] for i in range(2)]),
    )
    assert_same(load_weights(tmp_path / "stacked.npz", model), params)


@pytest.mark.parametrize("root", ["params/", "opt/target/"])
def test_parameters_are_found_in_training_states(name, root, write):
    kind, architecture = CASES[name]
    model = ModelDef(architecture)
    tensors = {f"{root}{key}": value for key, value in weights(name).items()}
    tensors |= {"opt/state/step": np.zeros((), np.int32), "opt/mu/head/bias": np.zeros(5)}
    path = write(tensors, "state.npz")
    assert format_of(path) == kind
    assert_same(load_weights(path, model), load_weights(write(weights(name)), model))


def test_bfloat16_as_numpy_stores_it(write):
    model = ModelDef(MAP)
    half = {k: v.astype(ml_dtypes.bfloat16) for k, v in weights("big_vision_map").items()}
    params = load_weights(write(half), model)
    assert params["head"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(params["head"]["kernel"], half["head/kernel"].astype(np.float32))


def test_class_token_without_a_position_fits_a_model_with_one(write, tmp_path):
    """The position becomes zero, and is added to the token on export."""
    tensors = weights("big_vision_tok")
    model, after = ModelDef(CLASS), ModelDef(AFTER)
    params = load_weights(write(tensors), model)
    np.testing.assert_array_equal(params["positions"][:1], np.zeros((1, 16)))
    np.testing.assert_array_equal(params["positions"][1:], tensors["pos_embedding"][0])
    params["positions"] = params["positions"].at[0].set(0.25)
    save_weights(params, model, tmp_path / "out.npz", "big_vision")
    found = load_weights(tmp_path / "out.npz", after)
    np.testing.assert_array_equal(found["class_token"], tensors["cls"][0] + np.float32(0.25))
    images = jnp.asarray(read_all(DATA / "npz_big_vision_tok.npz")[f"{PREFIX}images"])
    one, other = model.bind(params)(images), after.bind(found)(images)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "prefix"), [("vit_jax", 1), ("big_vision_tok", 0), ("big_vision_tok", 1)]
)
def test_positions_are_resized_to_the_models_grid(name, prefix, write):
    """With and without a position of the class token."""
    small = CLASS if prefix else AFTER
    large = dataclasses.replace(small, image_size=24)
    path = write(weights(name))
    table = load_weights(path, ModelDef(small))["positions"]
    found = load_weights(path, ModelDef(large))["positions"]
    expected = resize_positions(table, (4, 4), (6, 6), prefix, "bilinear_corners")
    np.testing.assert_array_equal(found, expected)


def test_files_without_positions_get_fixed_ones(write):
    """Against the formula of MoCo v3 (appendix B.2), as in big_vision, in float64."""
    tensors = weights("big_vision_gap")
    del tensors["pos_embedding"]
    found = load_weights(write(tensors), ModelDef(MEAN))["positions"]
    assert found.shape == (16, 16)
    for row in range(4):
        for column in range(4):
            for i in range(4):
                rate = 10_000.0 ** -(i / 3)
                angles = (column * rate, row * rate)
                expected = [f(a) for a in angles for f in (np.sin, np.cos)]
                np.testing.assert_allclose(found[4 * row + column, i::4], expected, atol=1e-6)
    assert fixed_positions((2, 3), 8).shape == (1, 6, 8)


def test_a_layer_before_the_head_is_refused(write):
    tensors = weights("vit_jax") | {
        "pre_logits/kernel": np.zeros((16, 16), np.float32),
        "pre_logits/bias": np.zeros(16, np.float32),
    }
    with pytest.raises(UserError, match=r"found a layer between them \(pre_logits \(16, 16\)\)"):
        load_weights(write(tensors), ModelDef(CLASS))


def test_what_does_not_fit_is_listed(write):
    tensors = weights("big_vision_map")
    tensors["MAPHead_0/prob"] = tensors.pop("MAPHead_0/probe")
    tensors["head/bias"] = np.zeros(6, np.float32)
    with pytest.raises(UserError) as caught:
        load_weights(write(tensors), ModelDef(MAP))
    assert str(caught.value).splitlines()[1:] == [
        "  missing: MAPHead_0/probe (1, 1, 16) (nearest: MAPHead_0/prob)",
        "  unexpected: MAPHead_0/prob (1, 1, 16)",
        "  another shape: head/bias: expected (5,), found (6,)",
    ]


@pytest.mark.parametrize(
    ("kind", "architecture", "message"),
    [
        ("vit_jax_npz", AFTER, "expected prefix_positions=True; found False"),
        ("vit_jax_npz", MAP, "without a name in the format: .*map_head/probe"),
        ("vit_jax_npz", SIGLIP, "holds models of ViTConfig; found CLIPConfig"),
        (
            "big_vision",
            dataclasses.replace(MEAN, position_init="fixed_sincos"),
            "fixed positions of other wavelengths",
        ),
        (
            "big_vision",
            dataclasses.replace(CLASS, distillation=True),
            "without a name in the format: .*distillation_token",
        ),
        (
            "big_vision_scanned",
            dataclasses.replace(SIGLIP, text=dataclasses.replace(SIGLIP.text, causal=True)),
            "causal=False, pool='last'; found .True, 'last'",
        ),
    ],
)
def test_models_that_the_libraries_do_not_have(kind, architecture, message, tmp_path):
    model = ModelDef(architecture)
    with pytest.raises(UserError, match=message):
        save_weights(model.shapes(), model, tmp_path / "out.npz", kind)
    assert not list(tmp_path.iterdir())
