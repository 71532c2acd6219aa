"""CLIP with a ViT against open_clip, in both directions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.weights.reference import relative_error, split_reference
from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.positions import resize_positions
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

# As in tests/fixtures/generators/make_clip.py.
IMAGE = ViTConfig(
    image_size=16,
    patch_size=4,
    width=32,
    depth=3,
    num_heads=4,
    mlp_dim=128,
    activation="quick_gelu",
    norm_epsilon=1e-5,
    pre_norm=True,
    patch_bias=False,
)
TEXT = TextConfig(vocab_size=50, context_length=9, width=24, depth=2, num_heads=3, mlp_dim=96)
CONFIG = CLIPConfig(image=IMAGE, text=TEXT, embed_dim=20)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return split_reference("clip_tiny.safetensors", tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model():
    return ModelDef(CONFIG)


def changed(**changes):
    return ModelDef(dataclasses.replace(CONFIG, **changes))


def test_same_activations(reference, model):
    path, expected = reference
    clip = model.bind(load_weights(path, model))
    images, tokens = expected["images"], expected["tokens"]
    found = {
        "image_embedding": clip.encode_image(images),
        "text_embedding": clip.encode_text(tokens),
        "image_normalized": clip.encode_image(images, normalize=True),
        "text_normalized": clip.encode_text(tokens, normalize=True),
        "logit_scale": clip.logit_parameters()[0],
    }
    found["logits"] = found["logit_scale"] * found["image_normalized"] @ found["text_normalized"].T
    for name, tower, x in (("image", clip.image, images), ("text", clip.text, tokens)):
        blocks = tower.features(x, range(tower.config.depth))
        found |= {f"{name}_block_{i}": block for i, block in enumerate(blocks)}
    assert found.keys() == expected.keys() - {"images", "tokens"}
    errors = {name: relative_error(np.asarray(x), expected[name]) for name, x in found.items()}
    assert max(errors.values()) < 1e-5, errors


def test_round_trip_is_exact(reference, model, tmp_path):
    path, _ = reference
    save_weights(load_weights(path, model), model, tmp_path / "out.safetensors", "openai_clip")
    before, after = open_weights(path), open_weights(tmp_path / "out.safetensors")
    assert set(after) == set(before)
    for key in before:
        assert after.dtype(key) == before.dtype(key)
        np.testing.assert_array_equal(after.read(key), before.read(key), strict=True)
    assert after.metadata == {"format": "pt"}


def test_settings_and_buffers_are_ignored_and_half_precision_is_widened(reference, model, tmp_path):
    """As in the files of OpenAI."""
    file = open_weights(reference[0])
    tensors = {key: file.read(key).astype(np.float16) for key in file}
    for name in ("input_resolution", "context_length", "vocab_size"):
        tensors[name] = np.asarray(7, np.int64)
    for name in ("attn_mask", "transformer.resblocks.0.attn_mask"):
        tensors[name] = np.zeros((9, 9), np.float16)
    write_tensors(tmp_path / "half.safetensors", tensors)
    params = load_weights(tmp_path / "half.safetensors", model)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(
        params["image"]["positions"], tensors["visual.positional_embedding"].astype(np.float32)
    )


def test_siglip_style_bias(reference, tmp_path):
    biased = changed(init_logit_bias=-10.0)
    with pytest.raises(UserError, match=r"missing: 1, .*\n  missing: logit_bias \(\)"):
        load_weights(reference[0], biased)
    file = open_weights(reference[0])
    tensors = {key: file.read(key) for key in file} | {"logit_bias": np.asarray(-9.5, np.float32)}
    write_tensors(tmp_path / "bias.safetensors", tensors)
    assert load_weights(tmp_path / "bias.safetensors", biased)["logit_bias"] == -9.5


def test_positions_are_resized_to_the_models_grid(reference, model):
    larger = changed(image=dataclasses.replace(IMAGE, image_size=24))
    table = load_weights(reference[0], model)["image"]["positions"]
    found = load_weights(reference[0], larger)["image"]["positions"]
    assert found.shape == (1 + 6 * 6, 32)
    np.testing.assert_array_equal(found, resize_positions(table, (4, 4), (6, 6), 1))


def test_lands_sharded(reference, model):
    """Each parameter has the requested sharding and the same values."""
    mesh = Mesh(np.asarray(jax.devices()), ("fsdp",))
    count = len(jax.devices())
    assert count > 1

    def place(x):
        split = x.ndim > 1 and x.shape[-1] % count == 0
        spec = PartitionSpec(*[None] * (x.ndim - 1), "fsdp") if split else PartitionSpec()
        return NamedSharding(mesh, spec)

    shardings = jax.tree.map(place, model.shapes())
    params = load_weights(reference[0], model, shardings=shardings)
    jax.tree.map(lambda x, s: x.sharding == s or pytest.fail(f"{x.sharding}"), params, shardings)
    kernel = params["image"]["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 32, 128 // count)
    jax.tree.map(np.testing.assert_array_equal, params, load_weights(reference[0], model))


def test_another_model_lists_all_that_does_not_fit(reference):
    other = changed(image=dataclasses.replace(IMAGE, depth=2, pre_norm=False, mlp_dim=64))
    with pytest.raises(UserError) as caught:
        load_weights(reference[0], other)
    assert "parameters that the model lacks: image/pre_norm/scale, image/pre_norm/bias" in str(
        caught.value
    )
    other = changed(image=dataclasses.replace(IMAGE, depth=2, mlp_dim=64))
    with pytest.raises(UserError) as caught:
        load_weights(reference[0], other)
    lines = str(caught.value).splitlines()
    assert "nothing was loaded; tensors missing: 0, unexpected: 12, of another shape: 6" in lines[0]
    key = "visual.transformer.resblocks"
    assert f"  unexpected: {key}.2.mlp.c_proj.weight (32, 128)" in lines
    shapes = "expected (64, 32), found (128, 32)"
    assert f"  another shape: {key}.{{0-1}}.mlp.c_fc.weight: {shapes}" in lines


def test_the_nearest_name_of_a_missing_tensor_is_given(reference, model, tmp_path):
    file = open_weights(reference[0])
    tensors = {key.replace("text_proj", "txt_proj"): file.read(key) for key in file}
    write_tensors(tmp_path / "misspelt.safetensors", tensors)
    with pytest.raises(UserError) as caught:
        load_weights(tmp_path / "misspelt.safetensors", model)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: text_projection (24, 20) (nearest: txt_projection)",
        "  unexpected: txt_projection (24, 20)",
    ]


def test_other_architectures_are_refused(reference, tmp_path):
    vit = ModelDef(IMAGE)
    message = "openai_clip holds models of CLIPConfig; found ViTConfig"
    with pytest.raises(UserError, match=message):
        load_weights(reference[0], vit)
    with pytest.raises(UserError, match=message):
        save_weights(vit.shapes(), vit, tmp_path / "out.safetensors", "openai_clip")
    assert not list(tmp_path.iterdir())


def test_unknown_formats(model, reference, tmp_path):
    write_tensors(tmp_path / "odd.safetensors", {"odd": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=r"vit_jax.*openai_clip.*matching: none; tensors: odd"):
        load_weights(tmp_path / "odd.safetensors", model)
    with pytest.raises(UserError, match="did you mean 'openai_clip'"):
        load_weights(reference[0], model, format="openai-clip")


def test_ambiguous_files(model, reference, tmp_path):
    """A file with the names of two libraries; the format can be named."""
    file = open_weights(reference[0])
    extra = {"decoder_embed.weight": np.zeros(2), "patch_embed.proj.weight": np.zeros(2)}
    tensors = {key: file.read(key) for key in file}
    write_tensors(tmp_path / "both.safetensors", tensors | extra)
    message = r"matching: openai_clip \(OpenAIClip\), mae \(OfficialMAE\)"
    with pytest.raises(UserError, match=message):
        load_weights(tmp_path / "both.safetensors", model)
    with pytest.raises(UserError, match=r"unexpected: decoder_embed.weight \(2,\)"):
        load_weights(tmp_path / "both.safetensors", model, format="openai_clip")
