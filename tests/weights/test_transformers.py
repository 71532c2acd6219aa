"""Formats of Hugging Face's transformers, in both directions."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tests.weights.activations import INPUTS, activations
from tests.weights.reference import DATA, format_of, relative_error, split_reference
from tests.weights.transformers_models import ARCHITECTURES, CLIP, DINOV2, MAE, SIGLIP, SWIN, VIT
from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.positions import resize_positions
from vit_jax.models.registry import model_spec
from vit_jax.models.swin.windows import resize_bias_table
from vit_jax.pretrained.identification import identify
from vit_jax.pretrained.weight_files import load_weights, read_architecture, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

# The refined CLIPSeg has the same layers and more, and the other is compared in tests/segmentation.
# The options of the others are those of other models here and in test_timm.py.
RELEASE = dict.fromkeys(("clipseg", "deit_one_head", "metaclip2", "aimv2"), pytest.mark.release)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=RELEASE.get(name, ())) for name in ARCHITECTURES],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders as written by the library, and its outputs, by model."""

    def make(name):
        folder = tmp_path_factory.mktemp(name)
        path, computed = split_reference(f"transformers_{name}.safetensors", folder)
        path.rename(folder / "model.safetensors")
        shutil.copy(DATA / f"transformers_{name}.json", folder / "config.json")
        return folder, computed

    return {name: make(name) for name in ARCHITECTURES}


def read_all(path):
    file = open_weights(path)
    return {key: file.read(key) for key in file}


def rewrite(folder, target, change):
    """Writes the weights of a folder under other names."""
    tensors = {change(key): value for key, value in read_all(folder).items()}
    write_tensors(target / "model.safetensors", tensors)
    return target / "model.safetensors"


def test_architecture_is_read_from_the_config(name, folders):
    assert read_architecture(folders[name][0]) == ARCHITECTURES[name]


@pytest.mark.parametrize(
    ("kind", "name", "image_size"),
    [("owlvit", "owlvit_base_patch32", 768), ("owlv2", "owlv2_base_patch16_ensemble", 960)],
)
def test_published_configs_of_detectors(kind, name, image_size, tmp_path):
    """They leave out what are defaults of the library."""
    write_tensors(tmp_path / "model.safetensors", {
        "box_head.dense0.weight": np.zeros(1), "class_head.logit_shift.weight": np.zeros(1)
    })  # fmt: skip
    config = {"model_type": kind, "vision_config": {"image_size": image_size}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_architecture(tmp_path) == model_spec(name).architecture


def test_published_config_of_clipseg(tmp_path):
    """Positions are those of 224 px; the preprocessing of the folder has 352 px."""
    write_tensors(tmp_path / "model.safetensors", {
        "decoder.film_mul.weight": np.zeros(1), "clip.text_projection.weight": np.zeros(1)
    })  # fmt: skip
    config = {"model_type": "clipseg", "vision_config": {"patch_size": 16}}
    config["use_complex_transposed_convolution"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 352}))
    found = identify(tmp_path)
    assert found.source.architecture.image.image_size == (224, 224)
    assert found.architecture == model_spec("clipseg_rd64_refined").architecture


def test_recognised(name, folders):
    assert format_of(folders[name][0]) == "transformers"


def test_same_activations(name, folders):
    folder, expected = folders[name]
    model = ModelDef(ARCHITECTURES[name])
    compute = jax.jit(lambda params, given: activations(model.bind(params), given))
    found = {k: np.asarray(v) for k, v in compute(load_weights(folder, model), expected).items()}
    assert found.keys() == {key for key in expected if key.split(".")[0] not in INPUTS}
    errors = {key: relative_error(value, expected[key]) for key, value in found.items()}
    assert max(errors.values()) < 1e-5, errors


def test_round_trip_is_exact(name, folders, tmp_path):
    folder, _ = folders[name]
    model = ModelDef(ARCHITECTURES[name])
    save_weights(load_weights(folder, model), model, tmp_path / "out.safetensors", "transformers")
    before, after = read_all(folder), read_all(tmp_path / "out.safetensors")
    # Layers that the models here lack.
    absent = {key for key in before if "pooler" in key or key.startswith("language_model.")}
    if name == "grounding_dino":
        absent |= {key for key in before if "swin.layernorm" in key}
    assert after.keys() == before.keys() - absent
    for key, value in after.items():
        if key.endswith("mask_token") and name != "mae":
            np.testing.assert_array_equal(value, np.zeros_like(before[key]), strict=True)
        elif "pos_embed" in key or (name == "mae" and "position_embeddings" in key):
            np.testing.assert_allclose(value, before[key], atol=1e-6, strict=True)
        else:
            np.testing.assert_array_equal(value, before[key], strict=True)
    assert open_weights(tmp_path / "out.safetensors").metadata == {"format": "pt"}


def assert_same(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_prefix_of_the_tower_may_stand_or_not(folders, tmp_path):
    bare = ModelDef(ARCHITECTURES["vit_bare"])
    expected = load_weights(folders["vit_bare"][0], bare)
    prefixed = rewrite(folders["vit_bare"][0], tmp_path, lambda key: f"vit.{key}")
    assert format_of(prefixed) == "transformers"
    assert_same(load_weights(prefixed, bare), expected)


# (in memory since transformers 5, in files), as the library translates them.
RENAMED = {
    "vit": {
        "vit.layers.0.attention.q_proj.bias": "vit.encoder.layer.0.attention.attention.query.bias",
        "vit.layers.1.attention.k_proj.bias": "vit.encoder.layer.1.attention.attention.key.bias",
        "vit.layers.2.attention.v_proj.bias": "vit.encoder.layer.2.attention.attention.value.bias",
        "vit.layers.0.attention.o_proj.bias": "vit.encoder.layer.0.attention.output.dense.bias",
        "vit.layers.0.mlp.fc1.weight": "vit.encoder.layer.0.intermediate.dense.weight",
        "vit.layers.0.mlp.fc2.weight": "vit.encoder.layer.0.output.dense.weight",
        "vit.layers.0.layernorm_after.bias": "vit.encoder.layer.0.layernorm_after.bias",
    },
    "mae": {
        "decoder.decoder_layers.0.mlp.fc2.bias": "decoder.decoder_layers.0.output.dense.bias",
        "decoder.decoder_encoder.layer.2.output.dense.bias": (
            "decoder.decoder_layers.2.output.dense.bias"
        ),
    },
    "dinov2": {
        "encoder.layer.0.attention.q_proj.bias": "encoder.layer.0.attention.attention.query.bias",
        "encoder.layer.0.attention.o_proj.bias": "encoder.layer.0.attention.output.dense.bias",
    },
    "swin": {
        "swin.encoder.layers.0.blocks.2.attention.q_proj.weight": (
            "swin.encoder.layers.0.blocks.2.attention.self.query.weight"
        ),
        "swin.encoder.layers.1.blocks.0.mlp.fc1.bias": (
            "swin.encoder.layers.1.blocks.0.intermediate.dense.bias"
        ),
        "swin.encoder.layers.0.blocks.0.attention.relative_position_bias"
        ".relative_position_bias_table": (
            "swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table"
        ),
    },
}


@pytest.mark.parametrize("name", RENAMED)
def test_names_in_memory(name, folders, tmp_path):
    in_memory = {in_file: key for key, in_file in RENAMED[name].items()}
    assert in_memory.keys() <= read_all(folders[name][0]).keys()
    path = rewrite(folders[name][0], tmp_path, lambda key: in_memory.get(key, key))
    model = ModelDef(ARCHITECTURES[name])
    assert_same(load_weights(path, model), load_weights(folders[name][0], model))


def test_buffers_of_older_files_are_ignored(folders, tmp_path):
    tensors = read_all(folders["clip"][0])
    for tower, length in (("text", 9), ("vision", 17)):
        tensors[f"{tower}_model.embeddings.position_ids"] = np.arange(length)[None]
    write_tensors(tmp_path / "old.safetensors", tensors)
    model = ModelDef(CLIP)
    assert_same(
        load_weights(tmp_path / "old.safetensors", model), load_weights(folders["clip"][0], model)
    )


def test_positions_are_resized_to_the_models_grid(folders):
    folder = folders["dinov2_with_registers"][0]
    small = ARCHITECTURES["dinov2_with_registers"]
    large = dataclasses.replace(small, image_size=24)
    table = load_weights(folder, ModelDef(small))["positions"]
    found = load_weights(folder, ModelDef(large))["positions"]
    expected = resize_positions(table, (4, 4), (6, 6), 1, "bicubic_antialias")
    np.testing.assert_array_equal(found, expected)


def test_bias_tables_are_resized_to_the_models_window(folders):
    """In the second stage the window shrinks to the map of 6 x 6."""
    folder = folders["swin"][0]
    large = dataclasses.replace(SWIN, image_size=48, window_size=8)
    table = load_weights(folder, ModelDef(SWIN))["stage1"]["blocks"]["attention"]
    found = load_weights(folder, ModelDef(large))["stage1"]["blocks"]["attention"]
    for layer in range(2):
        expected = resize_bias_table(table["bias_table"][layer], (4, 4), (6, 6), "bicubic")
        np.testing.assert_array_equal(found["bias_table"][layer], expected)


def test_what_does_not_fit_is_listed(folders):
    wrong = dataclasses.replace(VIT, mlp_dim=16, depth=2, num_classes=0)
    with pytest.raises(UserError) as caught:
        load_weights(folders["vit"][0], ModelDef(wrong))
    lines = str(caught.value).splitlines()
    assert "nothing was loaded; tensors missing: 0, unexpected: 18, of another shape: 6" in lines[0]
    assert "  unexpected: classifier.weight (5, 16)" in lines
    shapes = "expected (16, 16), found (24, 16)"
    assert f"  another shape: encoder.layer.{{0-1}}.intermediate.dense.weight: {shapes}" in lines


def test_only_the_head_is_missing_from_a_tower(folders):
    with pytest.raises(UserError) as caught:
        load_weights(folders["vit_bare"][0], ModelDef(VIT))
    assert str(caught.value).splitlines()[1:] == [
        "  missing: classifier.weight (5, 16)",
        "  missing: classifier.bias (5,)",
    ]


def test_other_positions_than_the_models_fixed_ones_are_refused(folders):
    fixed = dataclasses.replace(VIT, position_init="fixed_sincos")
    with pytest.raises(UserError, match=r"position_embeddings is not .* differ by up to"):
        load_weights(folders["vit"][0], ModelDef(fixed))
    large = dataclasses.replace(MAE, image=dataclasses.replace(MAE.image, image_size=24))
    with pytest.raises(UserError, match=r"expected the computed values \(1, 37, 16\); found shape"):
        load_weights(folders["mae"][0], ModelDef(large))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (dataclasses.replace(DINOV2, num_classes=5), "pool='class_mean' .* .True, 'class', True"),
        (dataclasses.replace(VIT, pool="mean"), "pool='class' .* found .True, 'mean', True"),
        (dataclasses.replace(VIT, qk_norm=True), "without a name in the format: .*q_norm/scale"),
        (dataclasses.replace(VIT, prefix_positions=False), "found .True, 'class', False"),
        (
            dataclasses.replace(SIGLIP, text=dataclasses.replace(SIGLIP.text, pool="eot")),
            "found .'map', False, 'eot'",
        ),
        (
            dataclasses.replace(
                CLIP, image=dataclasses.replace(CLIP.image, prefix_positions=False)
            ),
            "expected image.prefix_positions=True; found False",
        ),
    ],
)
def test_models_that_the_library_does_not_have(architecture, message, tmp_path):
    model = ModelDef(architecture)
    with pytest.raises(UserError, match=message):
        save_weights(model.shapes(), model, tmp_path / "out.safetensors", "transformers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "config", "registered"),
    [
        ("clip", {"model_type": "clip"}, "clip_vit_b32"),
        ("siglip", {"model_type": "siglip", "text_config": {}}, "siglip_b16"),
        (
            "clip",
            {
                "model_type": "clip",
                "projection_dim": 768,
                "text_config": {"hidden_size": 512},
                "text_config_dict": {
                    "hidden_size": 768,
                    "intermediate_size": 3072,
                    "num_attention_heads": 12,
                },
                "vision_config_dict": {
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_attention_heads": 16,
                    "num_hidden_layers": 24,
                    "patch_size": 14,
                },
            },
            "clip_vit_l14",
        ),
    ],
)
def test_short_configs_of_published_models(name, config, registered, folders, tmp_path):
    shutil.copy(folders[name][0] / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = model_spec(registered).architecture
    image = dataclasses.replace(expected.image, position_resize="bicubic")
    assert read_architecture(tmp_path) == dataclasses.replace(expected, image=image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "dinov3"}, "unknown model_type .* did you mean 'dinov2'"),
        ({"hidden_act": "relu"}, "unknown hidden_act 'relu'"),
        ({"qkv_bias": False}, "expected qkv_bias=True; found False"),
    ],
)
def test_configs_of_other_models(changes, message, folders, tmp_path):
    shutil.copy(folders["vit"][0] / "model.safetensors", tmp_path)
    config = json.loads((folders["vit"][0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        read_architecture(tmp_path)


def test_no_config(folders, tmp_path):
    shutil.copy(folders["vit"][0] / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"there is no config\.json beside them; name the model"):
        read_architecture(tmp_path)
