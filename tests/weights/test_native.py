"""The library's own format: tensors and description."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.reference import relative_error
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.spec import CLIP_MEAN, ModelSpec
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained import native
from vit_jax.pretrained.weight_files import load_weights

SPEC = ModelSpec(
    architecture=CLIPConfig(
        image=ViTConfig(image_size=8, patch_size=4, width=12, depth=2, num_heads=2, mlp_dim=16),
        text=TextConfig(
            vocab_size=20, context_length=5, width=8, depth=1, num_heads=2, mlp_dim=16,
            activation="gelu_tanh",
        ),
        embed_dim=6,
        init_logit_bias=-10.0,
    ),
    inputs=ImageInputs(resize="pad", mean=CLIP_MEAN),
    tokenizer="trained",
)  # fmt: skip
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(ModelDef(SPEC.architecture).init)(jax.random.key(0))


@pytest.mark.parametrize("name", ["", "run", "run/clip.safetensors"])
def test_saved_weights_need_nothing_else(params, tmp_path, name):
    """The model is rebuilt from the two files only."""
    native.save(tmp_path / name, params, SPEC)
    spec, loaded = native.load(tmp_path / name)
    assert spec == SPEC
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    model, original = (ModelDef(s.architecture) for s in (spec, SPEC))
    error = relative_error(
        np.asarray(model.bind(loaded).encode_image(IMAGES)),
        np.asarray(original.bind(params).encode_image(IMAGES)),
    )
    assert error == 0
    stem = "clip" if name.endswith("clip.safetensors") else "model"
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == [f"{stem}.json", f"{stem}.safetensors"]


def test_the_description_is_plain_json(params, tmp_path):
    native.save(tmp_path, params, SPEC, dtype="bfloat16")
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["architecture"]["architecture"] == "clip"
    assert described["architecture"]["text"]["activation"] == "gelu_tanh"
    assert described["inputs"]["resize"] == "pad"
    assert (described["tokenizer"], described["dtype"]) == ("trained", "bfloat16")


def test_loads_like_any_other_format(params, tmp_path):
    model = ModelDef(SPEC.architecture)
    native.save(tmp_path, params, SPEC)
    loaded = load_weights(tmp_path / "model.safetensors", model)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert loaded["logit_scale"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, r"expected format 'vit_jax', version 2 or 1; found \('vit_jax', 3\)"),
        ({"inputs": None}, "expected the key 'inputs'"),
        (
            {"architecture": {"architecture": "clap"}},
            "unknown architecture .*'clap'; did you mean 'clip'",
        ),
    ],
)
def test_descriptions_that_do_not_fit(params, tmp_path, change, message):
    native.save(tmp_path, params, SPEC)
    path = tmp_path / "model.json"
    described = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in described.items() if v is not None}))
    with pytest.raises(UserError, match=message):
        native.load(tmp_path)


def test_descriptions_of_version_1(params, tmp_path):
    """With `family` and `preprocess`, as vit_jax 0.1 wrote them."""
    native.save(tmp_path, params, SPEC)
    path = tmp_path / "model.json"
    described = json.loads(path.read_text())
    inputs, architecture = described.pop("inputs"), described["architecture"]
    del inputs["size"]
    inputs["crop_pct"] = inputs.pop("crop_fraction")
    described["preprocess"] = inputs
    for tower in (architecture, architecture["image"]):
        tower["family"] = tower.pop("architecture")
    path.write_text(json.dumps(described | {"version": 1}))
    assert native.load_spec(tmp_path) == SPEC


def test_missing_files(params, tmp_path):
    with pytest.raises(UserError, match=r"model.json: expected the description .* found none"):
        native.load(tmp_path)
    native.save(tmp_path, params, SPEC)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weight file at .*model.safetensors"):
        native.load(tmp_path)
    with pytest.raises(UserError, match=r"x.pt: expected a name ending in .safetensors"):
        native.save(tmp_path / "x.pt", params, SPEC)
