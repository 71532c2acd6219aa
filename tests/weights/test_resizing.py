"""Positions of weights at another resolution: the rule belongs to the format of the file."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

import vit_jax
from tests.weights.reference import DATA, format_of, split_reference
from tests.weights.test_npz import CASES as NPZ
from tests.weights.test_openai_clip import CONFIG as CLIP
from tests.weights.test_timm import CONFIGS as TIMM
from tests.weights.test_timm import SIGLIP, SWIN
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.grids import (
    MATRICES,
    RESIZE_RULES,
    fit_text_positions,
    resize_grid,
)
from vit_jax.models.layers.positions import resize_positions, sincos_positions
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained import native
from vit_jax.pretrained.identification import identify, with_image_size
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.training.initialization import _Towers
from vit_jax.weights.containers.reading import open_weights

RECORDED = np.load(DATA / "resizing.npz")
NAME = re.compile(r"(?P<rule>[a-z_]+)_(?P<old>\d+x\d+)_(?P<new>\d+)x(?P<columns>\d+)")


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_rules_are_those_of_torch_and_scipy(rule):
    """Larger, smaller and not square: recorded calls of the libraries."""
    cases = [match for name in RECORDED.files if (match := NAME.fullmatch(name))]
    cases = [match for match in cases if match["rule"] == rule]
    assert len(cases) == 6
    for i, case in enumerate(cases):
        new, table = (int(case["new"]), int(case["columns"])), RECORDED[case["old"]]
        if rule in MATRICES and i:  # one compilation is enough
            down, right = (MATRICES[rule](*n) for n in zip(table.shape[:2], new, strict=True))
            found = np.einsum("ai,bj,ijd->abd", down, right, table)
        else:
            found = resize_grid(jnp.asarray(table), new, rule)
        np.testing.assert_allclose(found, RECORDED[case[0]], atol=2e-5)


@pytest.mark.parametrize(("old", "new"), [(14, 21), (14, 8), (37, 55), (37, 22)])
def test_published_grids_against_formulas(old, new):
    """In float64, point by point; big_vision's rule against SciPy itself."""
    table = np.random.default_rng(0).normal(size=(old, 1, 1))

    def cubic(x, a):
        x = abs(x)
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return near if x <= 1 else far if x < 2 else 0.0

    def point(at, kernel, radius, border):
        """One value; pixels outside are the border's, or do not count."""
        pixels = np.arange(int(np.floor(at - radius)), int(np.ceil(at + radius)) + 1)
        weights = np.asarray([kernel(at - pixel) for pixel in pixels])
        if not border:
            weights = weights * ((pixels >= 0) & (pixels < old))
            weights = weights / weights.sum()
        return weights @ table[np.clip(pixels, 0, old - 1), 0, 0]

    half = (np.arange(new) + 0.5) * old
    shrink = max(1.0, old / new)
    expected = {
        "bicubic": [point(x / new - 0.5, lambda d: cubic(d, -0.75), 2, True) for x in half],
        "bicubic_offset": [
            point(x / (new + 0.1) - 0.5, lambda d: cubic(d, -0.75), 2, True) for x in half
        ],
        "bicubic_antialias": [
            point(x / new - 0.5, lambda d: cubic(d / shrink, -0.5), 2 * shrink, False) for x in half
        ],
        "bilinear_antialias": [
            point(x / new - 0.5, lambda d: max(0, 1 - abs(d / shrink)), shrink, False) for x in half
        ],
        "bilinear": [point(x / new - 0.5, lambda d: max(0, 1 - abs(d)), 1, True) for x in half],
        "bilinear_corners": scipy.ndimage.zoom(table, (new / old, 1, 1), order=1)[:, 0, 0],
    }
    assert expected.keys() == set(RESIZE_RULES)
    for rule, values in expected.items():
        if rule in MATRICES:
            found = MATRICES[rule](old, new) @ table[:, 0, 0]
        else:
            found = resize_grid(jnp.asarray(table, jnp.float32), (new, 1), rule)[:, 0, 0]
        np.testing.assert_allclose(found, values, atol=5e-6, err_msg=rule)


@pytest.mark.parametrize("length", [5, 14])
def test_text_positions_are_interpolated_as_by_torch(length):
    found = fit_text_positions(jnp.asarray(RECORDED["text"]), length, "linear")
    np.testing.assert_allclose(found, RECORDED[f"text_{length}"], atol=1e-5)


# Fixture -> rule.
RULES = {
    "timm_vit.safetensors": "bicubic_antialias",
    "timm_dinov2.safetensors": "bicubic_antialias",
    "swin_tiny.safetensors": "geometric",
    "clip_tiny.safetensors": "bicubic_antialias",
    "siglip_open_clip_tiny.safetensors": "bicubic_antialias",
    "npz_big_vision_map.npz": "bilinear_corners",
    "npz_vit_jax.npz": "bilinear_corners",
    "npz_siglip.npz": "bilinear_corners",
    "transformers_vit.safetensors": "bicubic",
    "transformers_deit.safetensors": "bicubic",
    "transformers_clip.safetensors": "bicubic",
    "transformers_siglip.safetensors": "bicubic",
    "transformers_swin.safetensors": "bicubic",
    "transformers_mae.safetensors": "bicubic",
    "transformers_dinov2.safetensors": "bicubic",
    "transformers_dinov2_with_registers.safetensors": "bicubic_antialias",
}
ARCHITECTURES = {
    "timm_vit": TIMM["vit"],
    "timm_dinov2": TIMM["dinov2"],
    "swin_tiny": SWIN,
    "clip_tiny": CLIP,
    "siglip_open_clip_tiny": SIGLIP,
    **{f"npz_{name}": config for name, (_, config) in NPZ.items()},
}


def open_fixture(name, folder):
    """Path of the weights of a fixture, and the named model if they do not describe theirs."""
    path, _ = split_reference(name, folder)
    stem = name.partition(".")[0]
    if stem in ARCHITECTURES:
        return path, ModelSpec(architecture=ARCHITECTURES[stem], inputs=ImageInputs())
    (folder / "config.json").write_text((DATA / f"{stem}.json").read_text())
    return path, None


@pytest.mark.parametrize("name", RULES)
def test_the_rule_belongs_to_the_format(name, tmp_path):
    path, named = open_fixture(name, tmp_path)
    architecture = identify(path, named).source.architecture
    tower = getattr(architecture, "image", architecture)
    assert tower.position_resize == RULES[name]


def random_parameters(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), model.shapes())


@pytest.mark.parametrize(
    ("registers", "rule"),
    [
        (0, "bicubic_offset"),
        pytest.param(2, "bicubic_antialias", marks=pytest.mark.release),
    ],
)
def test_dinov2_of_its_authors(registers, rule, tmp_path):
    """Their names, with a mask token and a position of the class token."""
    config = dataclasses.replace(TIMM["dinov2"], num_registers=registers)
    model = ModelDef(dataclasses.replace(config, position_resize=rule))
    params, path = random_parameters(model), tmp_path / "dinov2.safetensors"
    save_weights(params, model, path, "dinov2")
    file = open_weights(path)
    assert format_of(file) == "dinov2"
    assert ("register_tokens" in file) == bool(registers)
    found = identify(path, ModelSpec(architecture=config, inputs=ImageInputs()))
    assert found.architecture == model.architecture
    loaded = load_weights(path, ModelDef(with_image_size(config, (24, 12), "")))
    expected = resize_positions(jnp.asarray(params["positions"]), (4, 4), (6, 3), 1, rule)
    np.testing.assert_array_equal(loaded["positions"], expected)


def test_the_rule_is_kept_and_exported(tmp_path):
    """From transformers to the library's own format, to timm's names, and back."""
    path, _ = open_fixture("transformers_dinov2.safetensors", tmp_path)
    inputs = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 16}}
    inputs["crop_size"] = {"height": 16, "width": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(inputs))
    model = vit_jax.create_model(weights=path)
    table = model.params["positions"]
    expected = resize_positions(table, (4, 4), (6, 3), 1, "bicubic")
    native.save(tmp_path / "own", model.params, model.spec)
    own = vit_jax.create_model(weights=tmp_path / "own", image_size=(24, 12))
    np.testing.assert_array_equal(own.params["positions"], expected)

    save_weights(model.params, model.definition, tmp_path / "timm.safetensors", "timm")
    named = dataclasses.replace(model.spec, architecture=TIMM["dinov2"])
    found = identify(tmp_path / "timm.safetensors", named).source.architecture
    assert found.position_resize == "bicubic"

    # The unresized model resizes by the same rule when it is called.
    called = model.definition.bind(model.params)._positions((6, 3), 1)
    np.testing.assert_allclose(called, expected, rtol=1e-6)


def test_fine_tuning_at_another_size_uses_the_rule_of_the_weights():
    stored = ViTConfig(image_size=16, patch_size=4, width=8, num_heads=2, position_resize="bicubic")
    new = dataclasses.replace(stored, image_size=(24, 12), position_resize="bicubic_antialias")
    table = jnp.asarray(np.random.default_rng(0).normal(size=(17, 8)), jnp.float32)
    expected = resize_positions(table, (4, 4), (6, 3), 1, "bicubic")
    np.testing.assert_array_equal(_Towers(stored, new).adapt("positions", table), expected)


def test_fixed_positions_of_maes_files_are_resized(tmp_path):
    """From the grid of the file, as its authors and transformers do; fresh ones are computed."""
    path, _ = open_fixture("transformers_mae.safetensors", tmp_path)
    image = identify(path).source.architecture.image
    larger = with_image_size(image, 24, "")
    table = sincos_positions((4, 4), image.width)
    expected = resize_positions(table, (4, 4), (6, 6), 0, "bicubic")
    np.testing.assert_array_equal(larger.fixed_positions((6, 6), image.width), expected)
    fresh = dataclasses.replace(larger, position_grid=None)
    computed = sincos_positions((6, 6), image.width)
    np.testing.assert_array_equal(fresh.fixed_positions((6, 6), image.width), computed)


def test_grids_that_are_not_square(tmp_path):
    """The size of the weights is asked for."""
    config = dataclasses.replace(TIMM["vit"], image_size=(8, 16))
    model = ModelDef(config)
    params = random_parameters(model)
    save_weights(params, model, tmp_path / "x.safetensors", "timm")
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}

    def create(**options):
        return vit_jax.create_model("vit_b16", tmp_path / "x.safetensors", **fields | options)

    with pytest.raises(UserError, match=r"pos_embed: .* \(weights_size=\(height, width\) is the"):
        create(image_size=16)
    found = create(image_size=16, weights_size=(8, 16)).params["positions"]
    expected = resize_positions(jnp.asarray(params["positions"]), (2, 4), (4, 4), 1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "length", "rule", "refused"),
    [
        ("clip_tiny.safetensors", 5, "cut", ""),
        pytest.param(
            "transformers_siglip.safetensors", 14, "linear", None, marks=pytest.mark.release
        ),
    ],
)
def test_another_context_length(name, length, rule, refused, tmp_path):
    """Refused, cut or interpolated, as asked; also where the folder states the length."""
    path, named = open_fixture(name, tmp_path)
    source = identify(path, named).source
    key = "positional_embedding" if named else "text_model.embeddings.position_embedding.weight"
    table = jnp.asarray(open_weights(path).read(key))

    def load(rule):
        fields = {"context_length": length, "position_resize": rule}
        text = dataclasses.replace(source.architecture.text, **fields)
        changed = ModelDef(dataclasses.replace(source.architecture, text=text))
        return load_weights(path, changed, source=source)["text"]["positions"]

    np.testing.assert_array_equal(load(rule), fit_text_positions(table, length, rule))
    if refused is not None:
        with pytest.raises(UserError, match=r"'position_resize': 'cut' or 'linear'. fits it"):
            load(refused)
