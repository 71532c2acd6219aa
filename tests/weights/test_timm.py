"""Formats of timm and of open_clip's SigLIP, against the original libraries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.reference import format_of, relative_error, split_reference
from tests.weights.transformers_models import AIMV2
from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.positions import resize_positions, sincos_positions
from vit_jax.models.resnet.model import ResNetConfig
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.swin.windows import resize_bias_table
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

# As in tests/fixtures/generators/make_timm.py.
SIZES = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32}
VIT = ViTConfig(**SIZES, num_classes=5)
NO_CLASS = dataclasses.replace(VIT, class_token=False, pool="map")
SCALED = dataclasses.replace(VIT, layer_scale=0.1)
DINOV3 = dataclasses.replace(
    SCALED, num_registers=3, num_classes=0, norm_epsilon=1e-5, position_init="rotary"
)
CONFIGS = {
    "vit": dataclasses.replace(VIT, qk_norm=True),
    "gap": dataclasses.replace(VIT, pool="mean_norm"),
    "mean": dataclasses.replace(NO_CLASS, pool="mean", pre_norm=True, patch_bias=False),
    "map": NO_CLASS,
    "deit": dataclasses.replace(VIT, distillation=True),
    "deit3": dataclasses.replace(SCALED, prefix_positions=False),
    "dinov2": dataclasses.replace(SCALED, num_registers=3, num_classes=0),
    "aimv2": ViTConfig(**SIZES, **AIMV2),
    "dinov2_giant": dataclasses.replace(
        SCALED, gated_mlp=True, activation="silu", mlp_dim=24, num_classes=0
    ),
    "dinov3": dataclasses.replace(DINOV3, qkv_bias="qv", gated_mlp=True, activation="silu"),
    "dinov3_mean": dataclasses.replace(DINOV3, qkv_bias="none", pool="mean"),
}
# As in tests/fixtures/generators/make_swin.py and make_resnet.py.
SWIN = SwinConfig(
    image_size=32, width=8, depths=(5, 2), num_heads=(2, 4), window_size=4, num_classes=5
)
RESNET = ResNetConfig(image_size=64, depths=(3, 2, 1, 1), width=4, num_classes=10)
# As in tests/fixtures/generators/make_siglip_open_clip.py.
SIGLIP = CLIPConfig(
    image=dataclasses.replace(NO_CLASS, num_classes=0),
    text=TextConfig(
        vocab_size=50,
        context_length=9,
        width=12,
        depth=2,
        num_heads=3,
        mlp_dim=24,
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
# File -> format, architecture.
CASES = {
    **{f"timm_{name}": ("timm", config) for name, config in CONFIGS.items()},
    "swin_tiny": ("timm", SWIN),
    "resnet_tiny": ("timm", RESNET),
    "siglip_open_clip_tiny": ("siglip_open_clip", SIGLIP),
}


# Options of other models here and in test_transformers.py.
RELEASE = ("dinov2_giant", "dinov3_mean")


def marked(names, prefix=""):
    """Names as parameters of tests, some of which run before a release."""
    release = [f"{prefix}{name}" for name in RELEASE]
    return [pytest.param(n, marks=[pytest.mark.release] * (n in release)) for n in names]


@pytest.fixture(params=marked(CASES, "timm_"))
def case(request, tmp_path):
    return (*CASES[request.param], *split_reference(f"{request.param}.safetensors", tmp_path))


def changed(path, target, **changes):
    """Copies a file with some tensors replaced or added, or left out if None."""
    file = open_weights(path)
    tensors = {key: file.read(key) for key in file} | changes
    write_tensors(target, {k: np.asarray(v) for k, v in tensors.items() if v is not None})
    return target


@pytest.mark.parametrize("name", marked(CONFIGS))
def test_vit_has_the_same_activations(name, tmp_path):
    path, expected = split_reference(f"timm_{name}.safetensors", tmp_path)
    model = ModelDef(CONFIGS[name])
    module = model.bind(load_weights(path, model))
    images = expected.pop("images")
    blocks = module.features(images, range(3))
    found = {f"block_{i}": x for i, x in enumerate(blocks)}
    found["pooled"] = module.encode_image(images)
    if "logits" in expected:
        found["logits"] = module(images)
    assert found.keys() == expected.keys()
    errors = {key: relative_error(np.asarray(x), expected[key]) for key, x in found.items()}
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("name", ["swin_tiny", "resnet_tiny"])
def test_stages_have_the_same_activations(name, tmp_path):
    path, expected = split_reference(f"{name}.safetensors", tmp_path)
    model = ModelDef(CASES[name][1])
    module = model.bind(load_weights(path, model))
    images = expected["images"].astype(np.float32)
    staged = expected.get("other_images", images).astype(np.float32)
    stages = module.features(staged, range(len(model.architecture.depths)))
    found = {"pooled": module.encode_image(images), "logits": module(images)}
    found |= {f"stage_{i}": x for i, x in enumerate(stages)}
    errors = {key: relative_error(np.asarray(x), expected[key]) for key, x in found.items()}
    assert max(errors.values()) < 1e-5, errors


def test_siglip_has_the_same_activations(tmp_path):
    path, expected = split_reference("siglip_open_clip_tiny.safetensors", tmp_path)
    model = ModelDef(SIGLIP)
    module = model.bind(load_weights(path, model))
    images, tokens = expected.pop("images"), expected.pop("tokens")
    found = {
        "image_embedding": module.encode_image(images),
        "text_embedding": module.encode_text(tokens),
    }
    scale, bias = module.logit_parameters()
    z, t = (module.encode_image(images, normalize=True), module.encode_text(tokens, normalize=True))
    found["logits"] = scale * z @ t.T + bias
    for name, tower, x in (("image", module.image, images), ("text", module.text, tokens)):
        blocks = tower.features(x, range(tower.config.depth))
        found |= {f"{name}_block_{i}": block for i, block in enumerate(blocks)}
    assert found.keys() == expected.keys()
    errors = {key: relative_error(np.asarray(x), expected[key]) for key, x in found.items()}
    assert max(errors.values()) < 1e-5, errors


def test_round_trip_is_exact(case, tmp_path):
    """Names, dtypes and values; counters of batches are written as zero."""
    name, architecture, path, _ = case
    assert format_of(path) == name
    model = ModelDef(architecture)
    save_weights(load_weights(path, model), model, tmp_path / "out.safetensors", name)
    before, after = open_weights(path), open_weights(tmp_path / "out.safetensors")
    assert set(after) == set(before)
    assert format_of(after) == name
    for key in before:
        assert after.dtype(key) == before.dtype(key)
        value = before.read(key)
        expected = np.zeros_like(value) if key.endswith("num_batches_tracked") else value
        np.testing.assert_array_equal(after.read(key), expected, strict=True)


def test_what_does_not_fit_is_listed(case, tmp_path):
    _, architecture, path, _ = case
    file = open_weights(path)
    misshapen, missing = [key for key in file if key.endswith("norm1.weight")][:2] or [
        "layer1.0.conv1.weight",
        "layer1.0.conv2.weight",
    ]
    changes = {misshapen: np.zeros((3, 4), np.float32), missing: None, "odd.weight": np.zeros(2)}
    odd = changed(path, tmp_path / "odd.safetensors", **changes)
    with pytest.raises(UserError) as caught:
        load_weights(odd, ModelDef(architecture))
    message = str(caught.value)
    assert "tensors missing: 1, unexpected: 1, of another shape: 1" in message
    assert f"missing: {missing} {file.shape(missing)}" in message
    assert "unexpected: odd.weight (2,)" in message
    assert f"another shape: {misshapen}: expected {file.shape(misshapen)}, found (3, 4)" in message


@pytest.mark.parametrize("name", ["vit", "map", "deit", "deit3", "dinov2"])
def test_positions_are_resized_on_their_grid(name, tmp_path):
    """Positions of tokens before the patches are kept."""
    path, _ = split_reference(f"timm_{name}.safetensors", tmp_path)
    small = ModelDef(CONFIGS[name])
    large = ModelDef(dataclasses.replace(CONFIGS[name], image_size=24))
    num_prefix = CONFIGS[name].num_special if CONFIGS[name].prefix_positions else 0
    table, resized = (load_weights(path, model)["positions"] for model in (small, large))
    assert resized.shape == (num_prefix + 36, 16)
    np.testing.assert_array_equal(resized, resize_positions(table, (4, 4), (6, 6), num_prefix))


def test_the_class_tokens_position_is_folded_into_it(tmp_path):
    """DINOv2 with registers has no such position in timm. The computation is preserved."""
    path, expected = split_reference("timm_dinov2.safetensors", tmp_path)
    model = ModelDef(CONFIGS["dinov2"])
    params = load_weights(path, model)
    assert not np.any(params["positions"][0])
    moved = jnp.full((1, 16), 0.25)
    params["positions"] = params["positions"].at[:1].add(moved)
    params["class_token"] = params["class_token"] - moved
    pooled = model.bind(params).encode_image(expected["images"])
    assert relative_error(np.asarray(pooled), expected["pooled"]) < 1e-5
    save_weights(params, model, tmp_path / "out.safetensors", "timm")
    file = open_weights(tmp_path / "out.safetensors")
    for key in ("cls_token", "pos_embed"):
        expected = open_weights(path).read(key)
        np.testing.assert_allclose(file.read(key), expected, rtol=0, atol=1e-6)


def test_dinov3_of_its_authors(tmp_path):
    """Their names, with a bias of the keys that a mask clears."""
    path, expected = split_reference("timm_dinov3.safetensors", tmp_path)
    file, tensors = open_weights(path), {}
    names = {"reg_token": "storage_tokens", "gamma_": "ls", "fc1_g": "w1", "fc1_x": "w2"}
    for key in file:
        theirs = key
        for old, new in {**names, "mlp.fc2": "mlp.w3"}.items():
            theirs = theirs.replace(old, new)
        tensors[theirs + (".gamma" if "gamma_" in key else "")] = file.read(key)
    for i in range(3):
        queries, values = (tensors.pop(f"blocks.{i}.attn.{n}_bias") for n in "qv")
        bias = np.concatenate([queries, np.full_like(queries, 7.0), values])
        tensors[f"blocks.{i}.attn.qkv.bias"] = bias
        tensors[f"blocks.{i}.attn.qkv.bias_mask"] = np.repeat(np.float32([1, 0, 1]), 16)
    tensors["mask_token"] = np.ones((1, 16), np.float32)
    tensors["rope_embed.periods"] = np.float32([1, 10])
    write_tensors(tmp_path / "official.safetensors", tensors)
    assert format_of(tmp_path / "official.safetensors") == "dinov3"
    model = ModelDef(CONFIGS["dinov3"])
    params = load_weights(tmp_path / "official.safetensors", model)
    pooled = jax.jit(lambda p, x: model.bind(p).encode_image(x))(params, expected["images"])
    assert relative_error(np.asarray(pooled), expected["pooled"]) < 1e-5
    save_weights(params, model, tmp_path / "out.safetensors", "dinov3")
    after = open_weights(tmp_path / "out.safetensors")
    assert set(after) == set(tensors)
    np.testing.assert_array_equal(after.read("rope_embed.periods"), [1, 10])
    bias = after.read("blocks.2.attn.qkv.bias").reshape(3, 16)
    np.testing.assert_array_equal(bias[1], 0)
    np.testing.assert_array_equal(
        bias[[0, 2]], tensors["blocks.2.attn.qkv.bias"].reshape(3, 16)[[0, 2]]
    )


def test_fixed_positions_are_written_and_compared(tmp_path):
    path, _ = split_reference("timm_vit.safetensors", tmp_path)
    fixed = ModelDef(dataclasses.replace(CONFIGS["vit"], position_init="fixed_sincos"))
    with pytest.raises(UserError, match="pos_embed is not a parameter of this model"):
        load_weights(path, fixed)
    table = np.pad(sincos_positions((4, 4), 16), ((1, 0), (0, 0)))[None]
    path = changed(path, tmp_path / "fixed.safetensors", pos_embed=table)
    save_weights(load_weights(path, fixed), fixed, tmp_path / "out.safetensors", "timm")
    file = open_weights(tmp_path / "out.safetensors")
    assert set(file) == set(open_weights(path))
    np.testing.assert_array_equal(file.read("pos_embed"), table)


def test_bias_tables_are_resized_to_the_models_window(tmp_path):
    path, _ = split_reference("swin_tiny.safetensors", tmp_path)
    model = ModelDef(dataclasses.replace(SWIN, image_size=64, window_size=6))
    tables = load_weights(path, model)["stage0"]["blocks"]["attention"]["bias_table"]
    assert tables.shape == (5, 11 * 11, 2)
    table = open_weights(path).read("layers.0.blocks.3.attn.relative_position_bias_table")
    expected = resize_bias_table(jnp.asarray(table), (4, 4), (6, 6), "geometric")
    np.testing.assert_array_equal(tables[3], expected)


def test_buffers_of_older_versions_are_ignored(tmp_path):
    path, _ = split_reference("swin_tiny.safetensors", tmp_path)
    buffers = {
        "layers.0.blocks.0.attn.relative_position_index": np.zeros((16, 16), np.int64),
        "layers.0.blocks.1.attn_mask": np.zeros((4, 16, 16), np.float32),
    }
    older = changed(path, tmp_path / "older.safetensors", **buffers)
    model = ModelDef(SWIN)
    found, expected = (load_weights(p, model)["norm"]["scale"] for p in (older, path))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pool": "map"},
            "timm's attention pooling reads the patches only; found pool='map' with 1",
        ),
        ({"distillation": True, "num_registers": 2}, "pool='class', num_registers=2"),
        ({"distillation": True, "pool": "mean"}, "distilled models pool the class token"),
    ],
)
def test_models_that_timm_computes_differently_are_refused(changes, message, tmp_path):
    model = ModelDef(dataclasses.replace(VIT, **changes))
    with pytest.raises(UserError, match=message):
        save_weights(model.shapes(), model, tmp_path / "out.safetensors", "timm")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_projection": True},
            "without a projection; found ViTConfig, image_projection=True",
        ),
        ({"text_projection_bias": False}, "text_projection_bias=True"),
    ],
)
def test_pairs_that_are_no_siglip_are_refused(changes, message, tmp_path):
    path, _ = split_reference("siglip_open_clip_tiny.safetensors", tmp_path)
    model = ModelDef(dataclasses.replace(SIGLIP, **changes))
    with pytest.raises(UserError, match=message):
        load_weights(path, model)
