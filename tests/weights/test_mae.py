"""The original MAE checkpoints, with and without the decoder."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.reference import format_of, relative_error, split_reference
from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef
from vit_jax.models.mae.model import MAEConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

# As in tests/fixtures/generators/make_mae.py.
IMAGE = ViTConfig(
    image_size=16,
    patch_size=4,
    width=16,
    depth=3,
    num_heads=2,
    mlp_dim=32,
    position_init="fixed_sincos",
)
CONFIG = MAEConfig(
    image=IMAGE, decoder_width=8, decoder_depth=2, decoder_num_heads=2, decoder_mlp_dim=16
)
POSITIONS = ("pos_embed", "decoder_pos_embed")


@pytest.fixture
def reference(tmp_path):
    return split_reference("mae_tiny.safetensors", tmp_path)


@pytest.fixture(scope="module")
def model():
    return ModelDef(CONFIG)


def write(path, tensors):
    write_tensors(path, tensors)
    return path


def encoder_alone(path, target):
    """Writes the encoder only, as the authors publish it for fine-tuning."""
    file = open_weights(path)
    keys = [key for key in file if not key.startswith(("decoder", "mask_token"))]
    return write(target, {key: file.read(key) for key in keys})


def test_same_activations(reference, model):
    path, expected = reference
    mae = model.bind(load_weights(path, model))
    images, noise = expected.pop("images"), expected.pop("noise")
    pixels, mask = mae.reconstruct(images, noise, 0.75)
    shown = np.argsort(noise, axis=1)[:, :4]
    blocks = mae.features(images, range(3))
    found = {f"block_{i}": x for i, x in enumerate(blocks)}
    found |= {"pixels": pixels, "mask": mask, "pooled": mae.encode_image(images)}
    found["latent"] = mae.image.encode_patches(images, jnp.asarray(shown))
    assert found.keys() == expected.keys()
    errors = {key: relative_error(np.asarray(x), expected[key]) for key, x in found.items()}
    assert max(errors.values()) < 1e-5, errors


def test_round_trip_is_exact(reference, model, tmp_path):
    """Except for fixed positions, which are computed."""
    path, _ = reference
    assert format_of(path) == "mae"
    save_weights(load_weights(path, model), model, tmp_path / "out.safetensors", "mae")
    before, after = open_weights(path), open_weights(tmp_path / "out.safetensors")
    assert set(after) == set(before)
    assert format_of(after) == "mae"
    for key in before:
        assert after.dtype(key) == before.dtype(key)
        found, expected = after.read(key), before.read(key)
        if key in POSITIONS:
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
        else:
            np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("key", POSITIONS)
def test_learned_positions_are_refused(reference, model, tmp_path, key):
    file = open_weights(reference[0])
    tensors = {k: file.read(k) for k in file}
    tensors[key] = tensors[key] + 0.1
    with pytest.raises(UserError, match=rf": {key} is not a parameter .*found values that differ"):
        load_weights(write(tmp_path / "learned.safetensors", tensors), model)


def test_what_does_not_fit_is_listed(reference, model, tmp_path):
    file = open_weights(reference[0])
    tensors = {key: file.read(key) for key in file if key != "decoder_pred.bias"}
    tensors["odd"] = tensors.pop("mask_token")
    tensors["decoder_norm.weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as caught:
        load_weights(write(tmp_path / "odd.safetensors", tensors), model)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: mask_token (1, 1, 8)",
        "  missing: decoder_pred.bias (48,)",
        "  unexpected: odd (1, 1, 8)",
        "  another shape: decoder_norm.weight: expected (8,), found (3,)",
    ]


@pytest.mark.parametrize("position_init", ["fixed_sincos", "normal"])
def test_an_encoder_alone_is_a_vit(reference, tmp_path, position_init):
    """With fixed or learned positions; it has no head."""
    path, expected = reference
    path = encoder_alone(path, tmp_path / "encoder.safetensors")
    assert format_of(path) == "timm"
    config = dataclasses.replace(IMAGE, position_init=position_init)
    vit = ModelDef(config)
    found = vit.bind(load_weights(path, vit)).encode_image(expected["images"])
    assert relative_error(np.asarray(found), expected["pooled"]) < 1e-5
    classifier = ModelDef(dataclasses.replace(config, num_classes=7))
    with pytest.raises(UserError, match=r"missing: head.weight \(7, 16\)"):
        load_weights(path, classifier)
