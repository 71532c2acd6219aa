"""SigLIP 2 NaFlex of transformers and timm: preprocessing, outputs and weights, both ways."""

import json
import shutil

import jax
import numpy as np
import pytest

import vit_jax
from tests.weights.reference import DATA, format_of, relative_error, split_reference
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained.identification import identify
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

# As in tests/fixtures/generators/make_naflex.py.
PROCESSOR = {
    "image_processor_type": "Siglip2ImageProcessor",
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "patch_size": 4,
    "max_num_patches": 16,
    "resample": 2,
}
TOWER = ViTConfig(
    image_size=16,
    patch_size=4,
    width=16,
    depth=2,
    num_heads=2,
    mlp_dim=24,
    activation="gelu_tanh",
    class_token=False,
    pool="map",
    position_grid=(3, 3),
    position_resize="bilinear_antialias",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the library publishes it, and the outputs of the library."""
    folder = tmp_path_factory.mktemp("naflex")
    path, expected = split_reference("naflex_transformers.safetensors", folder)
    path.rename(folder / "model.safetensors")
    shutil.copy(DATA / "naflex_transformers.json", folder / "config.json")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder, {key: np.asarray(value) for key, value in expected.items()}


@pytest.fixture(scope="module")
def model(folder):
    return vit_jax.create_model(weights=folder[0])


def images_of(expected):
    return [expected[f"pixels.{i}"] for i in range(3)]


def test_patches_are_those_of_the_processor(folder, model):
    _, expected = folder
    assert model.spec.inputs.max_patches == 16
    packed = np.stack([model.preprocess(image) for image in images_of(expected)])
    found = model.spec.inputs.normalize(packed)
    np.testing.assert_array_equal(found.grid, expected["spatial_shapes"])
    mask = np.asarray(found.mask)
    assert not mask.all()
    np.testing.assert_allclose(found.values[mask], expected["pixel_values"][mask], atol=1e-6)


def test_same_outputs_as_transformers(folder, model):
    _, expected = folder
    packed = np.stack([model.preprocess(image) for image in images_of(expected)])
    found = {
        "image_normalized": model.encode_image(packed, normalize=True),
        "text_normalized": model.encode_text(expected["tokens"], normalize=True),
    }
    for key, value in found.items():
        assert relative_error(np.asarray(value), expected[key]) < 1e-5
    scale, bias = (model.params[f"logit_{name}"] for name in ("scale", "bias"))
    logits = np.asarray(found["image_normalized"]) @ np.asarray(found["text_normalized"]).T
    assert relative_error(logits * np.exp(scale) + bias, expected["logits"]) < 1e-5


def test_round_trip_of_timm(tmp_path):
    path, _ = split_reference("naflex_timm.safetensors", tmp_path)
    assert format_of(path) == "timm"
    definition = ModelDef(TOWER)
    params = load_weights(path, definition)
    assert_round_trip(path, params, definition, "timm", tmp_path / "out.safetensors")


@pytest.mark.release
def test_same_features_as_timm(tmp_path):
    path, expected = split_reference("naflex_timm.safetensors", tmp_path)
    definition = ModelDef(TOWER)
    params = load_weights(path, definition)
    inputs = ImageInputs(size=(16, 16), resize="naflex", interpolation="bilinear", patch_size=4)
    packed = np.stack([inputs.pack(inputs(np.asarray(x))) for x in images_of(expected)])

    @jax.jit
    def encode(params, packed):
        return definition.bind(params).encode_image(inputs.normalize(packed))

    found = np.asarray(encode(params, packed))
    assert relative_error(found, np.asarray(expected["pooled"])) < 1e-5


def assert_round_trip(path, params, definition, format, written):
    save_weights(params, definition, written, format)
    before, after = open_weights(path), open_weights(written)
    assert {*before} == {*after}
    for key in before:
        np.testing.assert_array_equal(after.read(key), before.read(key), strict=True)


def test_round_trip_of_transformers(folder, model, tmp_path):
    path = folder[0] / "model.safetensors"
    target = tmp_path / "out.safetensors"
    assert_round_trip(path, model.params, model.definition, "transformers", target)


def test_weights_of_fixed_models_load_and_back(folder, model, tmp_path):
    """The embedding of patches is a convolution there, and positions are those of the images."""
    file = open_weights(folder[0] / "model.safetensors")
    tensors = {key: file.read(key) for key in file}
    key = "vision_model.embeddings.patch_embedding.weight"
    kernel = tensors[key].reshape(16, 4, 4, 3).transpose(0, 3, 1, 2)
    tensors[key] = np.ascontiguousarray(kernel)
    write_tensors(tmp_path / "fixed.safetensors", tensors)
    params = load_weights(tmp_path / "fixed.safetensors", model.definition)
    jax.tree.map(np.testing.assert_array_equal, params, model.params)


@pytest.mark.parametrize("name", ["siglip2_b16_naflex", "siglip2_so400m16_naflex"])
def test_published_config(name, tmp_path):
    """Published folders leave out what are defaults of the library."""
    letters = {"vision_model.embeddings.patch_embedding.weight": np.zeros((1, 1))}
    letters["text_model.embeddings.token_embedding.weight"] = np.zeros((1, 1))
    write_tensors(tmp_path / "model.safetensors", letters)
    sizes = {"vision_config": {}, "text_config": {"vocab_size": 256_000}}
    if "so400m" in name:
        stack = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16}
        for part in sizes.values():
            part |= {**stack, "intermediate_size": 4304}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2", **sizes}))
    processor = {"image_processor_type": "Siglip2ImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found, expected = identify(tmp_path), model_spec(name)
    assert found.architecture == expected.architecture
    assert found.spec(name).inputs == expected.inputs


def test_published_folder_of_timm(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {
        "embeds.proj.weight": np.zeros((1, 1)), "attn_pool.latent": np.zeros((1, 1, 1))
    })  # fmt: skip
    settings = {"input_size": [3, 384, 384], "crop_pct": 1.0, "interpolation": "bicubic"}
    config = {"architecture": "naflexvit_base_patch16_siglip", "global_pool": "map"}
    config["pretrained_cfg"] = {**settings, "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = identify(tmp_path).spec("timm")
    assert spec.architecture == model_spec("timm_siglip2_b16_naflex").architecture
    assert (spec.inputs.is_naflex, spec.inputs.interpolation) == (True, "bicubic")
