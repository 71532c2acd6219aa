"""`flax_model.msgpack` of transformers' former Flax models, in both directions."""

import shutil

import jax
import numpy as np
import pytest

from tests.weights.activations import activations
from tests.weights.reference import DATA, format_of, relative_error
from vit_jax.models.definition import ModelDef
from vit_jax.pretrained.identification import identify
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights

# Outputs of our models that the fixtures contain.
OUTPUTS = ("pooled", "logits", "image_normalized", "text_normalized")


@pytest.fixture(scope="module", params=["vit", "clip"])
def loaded(request, tmp_path_factory):
    """Folder as the library wrote it, its reference values, model and parameters."""
    name, folder = request.param, tmp_path_factory.mktemp("flax")
    shutil.copy(DATA / f"flax_{name}.msgpack", folder / "flax_model.msgpack")
    shutil.copy(DATA / f"flax_{name}.json", folder / "config.json")
    file = open_weights(DATA / f"flax_{name}_reference.safetensors")
    model = ModelDef(identify(folder).source.architecture)
    return folder, {k: file.read(k) for k in file}, model, load_weights(folder, model)


def test_same_outputs(loaded):
    folder, expected, model, params = loaded
    assert format_of(open_weights(folder)) == "transformers_flax"
    found = jax.jit(lambda params, given: activations(model.bind(params), given))(params, expected)
    errors = {
        key: relative_error(np.asarray(found[key]), expected[key])
        for key in expected
        if key in OUTPUTS
    }
    assert len(errors) >= 2
    assert max(errors.values()) < 1e-5, errors


def test_round_trip_is_exact(loaded, tmp_path):
    folder, _, model, params = loaded
    save_weights(params, model, tmp_path / "flax_model.msgpack", "transformers_flax")
    before, after = open_weights(folder), open_weights(tmp_path)
    assert set(after) == set(before)
    for key in before:
        np.testing.assert_array_equal(after.read(key), before.read(key), strict=True)
