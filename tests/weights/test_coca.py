"""open_clip's CoCa, in both directions."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.weights.reference import DATA, format_of, relative_error, split_reference
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.pretrained.weight_files import load_weights, read_architecture, save_weights
from vit_jax.weights.containers.reading import open_weights

NAME = "coca_open_clip_tiny"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """File beside its description, reference values, model and parameters."""
    folder = tmp_path_factory.mktemp("coca")
    path, expected = split_reference(f"{NAME}.safetensors", folder)
    shutil.copy(DATA / f"{NAME}.json", folder / "open_clip_config.json")
    model = ModelDef(read_architecture(path))
    return path, expected, model, load_weights(path, model)


def test_same_embeddings_and_captions(loaded):
    path, expected, model, params = loaded
    assert format_of(path) == "coca_open_clip"

    def compute(params, images, tokens):
        module = model.bind(params)
        image, text, states = module.encode_pairs(images, tokens)
        return {"image": image, "text": text, "caption": module.decoder.logits(states[:, 1:])}

    found = jax.jit(compute)(params, expected["images"], expected["tokens"])
    errors = {key: relative_error(np.asarray(x), expected[key]) for key, x in found.items()}
    assert max(errors.values()) < 1e-5, errors


def test_round_trip_is_exact(loaded, tmp_path):
    path, _, model, params = loaded
    save_weights(params, model, tmp_path / "out.safetensors", "coca_open_clip")
    before, after = open_weights(path), open_weights(tmp_path / "out.safetensors")
    assert set(after) == set(before)
    for key in before:
        np.testing.assert_array_equal(after.read(key), before.read(key), strict=True)


def test_published_settings_are_those_of_the_registered_model(loaded, tmp_path):
    config = {
        "embed_dim": 512,
        "vision_cfg": {"layers": 12, "width": 768, "patch_size": 32, "attentional_pool": True},
        "text_cfg": {"context_length": 76, "embed_cls": True},
        "multimodal_cfg": {"context_length": 76, "width": 512, "heads": 8, "layers": 12},
    }
    path = shutil.copy(loaded[0], tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    assert read_architecture(path) == model_spec("coca_ViT-B-32").architecture
