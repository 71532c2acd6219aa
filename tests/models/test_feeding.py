"""Vision sides of LLaVA and Qwen-VL, and text encoders of Stable Diffusion.

Activations of the models of transformers are compared in tests/weights/test_transformers.py.
"""

import dataclasses
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.weights.reference import DATA, relative_error, split_reference
from tests.weights.transformers_models import CLIP_TEXT, LLAVA
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.models.qwen_vl.model import QwenVLConfig
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained.folder_tokenizer import folder_tokenizer
from vit_jax.pretrained.huggingface import read_inputs
from vit_jax.pretrained.weight_files import load_weights, read_architecture, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

QWEN = QwenVLConfig(
    image=ViTConfig(
        image_size=24,
        patch_size=4,
        width=12,
        depth=3,
        num_heads=3,
        mlp_dim=20,
        class_token=False,
        pool="none",
        position_grid=(3, 3),
        position_resize="bicubic",
        pre_norm=True,
        patch_bias=False,
    ),
    width=16,
    num_heads=2,
    num_queries=4,
)
SETTINGS = {
    "heads": 3,
    "image_size": 24,
    "layers": 3,
    "mlp_ratio": 1.7,
    "output_dim": 16,
    "patch_size": 4,
    "width": 12,
}


def read_all(path):
    file = open_weights(path)
    return {key: file.read(key) for key in file}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Path of a small Qwen-VL, and inputs and outputs of the torch model."""
    return split_reference("qwen_vl_tiny.safetensors", tmp_path_factory.mktemp("qwen_vl"))


@pytest.mark.parametrize("size", ["square", "wide"])
def test_qwen_vl(size, qwen):
    """Positions of 3 x 3 patches on 6 x 6 and 4 x 7, those of the 2 x 2 queries as well."""
    path, computed = qwen
    expected = {k.removeprefix(f"{size}."): v for k, v in computed.items() if k.startswith(size)}
    images, model = expected.pop("images"), ModelDef(QWEN)

    def run(params, images):
        module = model.bind(params)
        blocks = module.features(images, range(3))
        grid = images.shape[1] // 4, images.shape[2] // 4
        found = {f"image_block_{i}": block for i, block in enumerate(blocks)}
        found["resampled"] = module.resampler(blocks[-1], grid)
        return found | {"embeddings": module(images)}

    found = jax.jit(run)(load_weights(path, model), images)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert relative_error(np.asarray(found[key]), np.asarray(value)) < 1e-5


def test_qwen_vl_files(qwen, tmp_path, caplog):
    """Both ways; tensors of the language model stay unread, others are errors."""
    model, before = ModelDef(QWEN), read_all(qwen[0])
    with caplog.at_level(logging.INFO):
        params = load_weights(qwen[0], model)
    assert "2 tensors of another model (transformer.wte.*, " in caplog.text
    assert f"are left out: {4 * (16 + 7 * 16)} bytes" in caplog.text
    save_weights(params, model, tmp_path / "model.safetensors", "qwen_vl")
    after = read_all(tmp_path / "model.safetensors")
    assert before.keys() - after.keys() == {"lm_head.weight", "transformer.h.0.ln_1.weight"}
    for key, value in after.items():
        np.testing.assert_array_equal(value, before[key], strict=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": SETTINGS}))
    # The authors' heads have 128 features.
    assert read_architecture(tmp_path) == dataclasses.replace(QWEN, num_heads=1)
    write_tensors(tmp_path / "model.safetensors", after | {"transformer.visual.x": np.ones(2)})
    with pytest.raises(UserError, match=r"unexpected: transformer\.visual\.x \(2,\)"):
        load_weights(tmp_path, model)


def test_qwen_vl_is_refused_with_other_towers():
    with pytest.raises(UserError, match="'class' and 1 leading tokens"):
        dataclasses.replace(QWEN, image=ViTConfig())
    with pytest.raises(UserError, match="num_queries=5: expected a square number"):
        dataclasses.replace(QWEN, num_queries=5)
    tower = ModelDef(QWEN.image)
    images = jnp.zeros((1, 24, 24, 3))
    with pytest.raises(UserError, match="this tower has no pooled features"):
        jax.eval_shape(lambda params: tower.bind(params)(images), tower.shapes())


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A LLaVA in shards of safetensors and of torch, and the outputs of transformers."""
    path, computed = split_reference("transformers_llava.safetensors", tmp_path_factory.mktemp("x"))
    folder = tmp_path_factory.mktemp("llava")
    tensors = read_all(path)
    names = {key: f"model-{i % 3}.safetensors" for i, key in enumerate(tensors)}
    for name in set(names.values()):
        write_tensors(folder / name, {k: v for k, v in tensors.items() if names[k] == name})
    index = json.dumps({"weight_map": names})
    (folder / "model.safetensors.index.json").write_text(index)
    settings = {"crop_size": 16, "size": {"shortest_edge": 16}, "do_pad": True}
    for place in (
        folder,
        shutil.copytree(DATA / "llava_shards", tmp_path_factory.mktemp("y") / "t"),
    ):
        shutil.copy(DATA / "transformers_llava.json", place / "config.json")
        (place / "preprocessor_config.json").write_text(json.dumps(settings))
    return {"safetensors": folder, "torch": place}, computed


def test_llava_in_shards(shards, caplog):
    folders, expected = shards
    with caplog.at_level(logging.INFO):
        model = vit_jax.create_model(weights=folders["safetensors"])
    assert model.spec.architecture == LLAVA
    assert model.spec.inputs == ImageInputs(
        size=(16, 16), resize="square", mean=CLIP_MEAN, std=CLIP_STD
    )
    tensors = read_all(folders["safetensors"])
    left = [x for key, x in tensors.items() if key.startswith("language_model.")]
    size = sum(x.nbytes for x in left)
    message = f"{len(left)} tensors of another model (language_model.*, lm_head.*) are left out"
    assert f"{message}: {size:,} bytes" in caplog.text
    embeddings = model(expected["images"])
    assert relative_error(np.asarray(embeddings), np.asarray(expected["embeddings"])) < 1e-5
    again = load_weights(folders["torch"], model.definition)
    jax.tree.map(np.testing.assert_array_equal, again, model.params)
    with pytest.raises(UserError, match="llava models have no pooled features of images"):
        model.encode_image(expected["images"])
    with pytest.raises(UserError, match="llava models read no text"):
        model.tokenize  # noqa: B018


def test_shards_of_the_language_model_are_not_read(shards, monkeypatch):
    """Not one of its tensors, nor a vision tensor twice."""
    file, read = open_weights(shards[0]["safetensors"]), []
    monkeypatch.setattr(
        type(file), "read", lambda self, key: read.append(key) or self.tensor(key).load()
    )
    load_weights(shards[0]["safetensors"], ModelDef(LLAVA))
    assert len(read) == len(set(read)) > 0
    assert {key for key in file if not key.startswith("language_model.")} == set(read)


def test_names_of_llavas_authors(shards, tmp_path):
    """Files with a tower, both ways; those without are refused with what to do."""
    model = ModelDef(LLAVA)
    params = load_weights(shards[0]["safetensors"], model)
    save_weights(params, model, tmp_path / "x.safetensors", "llava")
    tensors = read_all(tmp_path / "x.safetensors")
    published = read_all(shards[0]["safetensors"])
    for ours, theirs in (
        ("model.mm_projector.0.weight", "multi_modal_projector.linear_1.weight"),
        ("model.mm_projector.2.bias", "multi_modal_projector.linear_2.bias"),
        (
            "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
            "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
        ),
    ):
        np.testing.assert_array_equal(tensors[ours], published[theirs])
    language = {"model.layers.0.mlp.up_proj.weight": np.ones(2), "lm_head.weight": np.ones(3)}
    write_tensors(tmp_path / "x.safetensors", tensors | language)
    again = load_weights(tmp_path / "x.safetensors", model)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    projector = {key: value for key, value in tensors.items() if "mm_projector" in key}
    write_tensors(tmp_path / "x.safetensors", projector | language)
    with pytest.raises(UserError, match=r"found a projector alone.*Folders of transformers"):
        load_weights(tmp_path / "x.safetensors", model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava_next"}, "expected model_type='llava'; found 'llava_next'"),
        ({"vision_feature_layer": [-2, -5]}, r"the number of one block .* found \[-2, -5\]"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "vision_config.model_type="),
        ({"projector_hidden_act": "gelu_"}, "did you mean 'gelu'"),
        ({"multimodal_projector_bias": False}, "expected multimodal_projector_bias=True"),
    ],
)
def test_other_llavas(changes, message, shards, tmp_path):
    folder = shutil.copytree(shards[0]["safetensors"], tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        read_architecture(folder)


def test_short_config_of_the_published_llava(shards, tmp_path):
    """It leaves out what are defaults of the library."""
    folder = shutil.copytree(shards[0]["safetensors"], tmp_path / "x")
    for width, name in ((None, "llava_1_5_7b"), (5120, "llava_1_5_13b")):
        text = {"hidden_size": width} if width else {}
        config = {"model_type": "llava", "text_config": text, "vision_config": {}}
        (folder / "config.json").write_text(json.dumps(config))
        expected = registry.model_spec(name).architecture
        image = dataclasses.replace(expected.image, position_resize="bicubic")
        assert read_architecture(folder) == dataclasses.replace(expected, image=image)


def test_the_inputs_of_a_model_can_be_changed(shards):
    make = lambda **kw: vit_jax.create_model(weights=shards[0]["safetensors"], **kw)  # noqa: E731
    model = make(inputs={"resize": "crop"}, image_size=20)
    assert (model.spec.inputs.resize, model.spec.inputs.size) == ("crop", (20, 20))
    assert model.preprocess(np.zeros((20, 50, 3), np.uint8)).shape == (20, 20, 3)
    with pytest.raises(UserError, match="set image_size instead"):
        make(inputs={"size": (20, 20)})
    with pytest.raises(UserError, match=r"did you mean 'inputs\.resize'"):
        make(inputs={"resiz": "crop"})


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd") / "text_encoder"
    folder.mkdir()
    path, computed = split_reference("transformers_clip_text.safetensors", folder)
    path.rename(folder / "model.safetensors")
    shutil.copy(DATA / "transformers_clip_text.json", folder / "config.json")
    return folder, computed


def test_states_of_sdxl(text_encoder):
    """Outputs of the last block but one without norm; `clip_skip` counts from there."""
    folder, expected = text_encoder
    sizes = {field: getattr(CLIP_TEXT.text, field) for field in ("width", "depth", "num_heads")}
    sizes |= {"mlp_dim": 20, "vocab_size": 50, "context_length": 9}
    model = vit_jax.create_model("stable_diffusion_xl_text", weights=folder, text=sizes)
    states = model.text_states(expected["tokens"])
    assert relative_error(np.asarray(states), np.asarray(expected["text_block_0"])) < 1e-5
    with pytest.raises(UserError, match="layer -3 does not exist: this tower has 2 blocks"):
        model.text_states(expected["tokens"], clip_skip=1)
    with pytest.raises(UserError, match="clip_skip=-1: expected 0 or more"):
        model.text_states(expected["tokens"], clip_skip=-1)
    with pytest.raises(UserError, match="clip_text models read no images"):
        model.preprocess(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="clip_text models do not classify images; call encode_tex"):
        model(np.zeros((1, 4, 4, 3)))
    unnamed = vit_jax.create_model(weights=folder)
    assert unnamed.spec.architecture == CLIP_TEXT
    with pytest.raises(UserError, match="the tokenizer is unknown; name the model"):
        unnamed.tokenize  # noqa: B018


def test_padding_of_text_encoders(tmp_path):
    """Files of the tokenizers beside the text encoders state it."""
    for number, pad, expected in (("", "<|endoftext|>", "clip:?pad=49407"), ("_2", "!", "clip")):
        encoder, place = (tmp_path / f"{name}{number}" for name in ("text_encoder", "tokenizer"))
        encoder.mkdir()
        assert folder_tokenizer(encoder, "clip_text_model", 49408) is None
        place.mkdir()
        (place / "tokenizer_config.json").write_text(
            json.dumps({"pad_token": pad, "tokenizer_class": "CLIPTokenizer"})
        )
        assert folder_tokenizer(encoder, "clip_text_model", 49408) == expected
        row = open_tokenizer(expected, vocab_size=49408, context_length=77)("a diagram")[0]
        assert row[:4].tolist() == [49406, 320, 22697, 49407]
        assert set(row[4:].tolist()) == {0 if pad == "!" else 49407}
    with pytest.raises(UserError, match="pad=49408: expected an id below 49408"):
        open_tokenizer("clip:?pad=49408", vocab_size=49408, context_length=77)
    names = ("1_text", "2_text", "xl_text", "xl_text_2")
    found = [registry.model_spec(f"stable_diffusion_{name}").tokenizer for name in names]
    assert found == ["clip:?pad=49407", "clip", "clip:?pad=49407", "clip"]


def test_square_of_the_mean_colour():
    """The image in its centre, one pixel nearer to the upper left corner if the rest is odd."""
    image = np.full((2, 5, 3), 200, np.uint8)
    found = ImageInputs(size=(5, 5), resize="square", mean=(0.5, 0.25, 0.99))(image)
    np.testing.assert_array_equal(found[0], [[127, 63, 252]] * 5)
    np.testing.assert_array_equal(found[1:3], image)
    np.testing.assert_array_equal(found[3:], [[[127, 63, 252]] * 5] * 2)


def test_padding_of_llavas_processor(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    for changes, resize in (
        ({}, "crop"),
        ({"do_pad": False}, "crop"),
        ({"do_pad": True}, "square"),
    ):
        path.write_text(json.dumps({"image_processor_type": "LlavaImageProcessor", **changes}))
        assert read_inputs(tmp_path, "llava").resize == resize
    path.write_text(json.dumps({"image_processor_type": "CLIPImageProcessor", "do_pad": True}))
    with pytest.raises(UserError, match="expected do_pad=False; found True"):
        read_inputs(tmp_path, "llava")
