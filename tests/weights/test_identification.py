"""What a file or its folder states is used, and what neither states is asked for."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tokenizers as hf
from safetensors.numpy import save_file

import vit_jax
from tests.weights.reference import DATA, split_reference
from tests.weights.test_openai_clip import CONFIG
from tests.weights.test_timm import CONFIGS
from vit_jax.data.tokenizers.clip import _model as clip_model
from vit_jax.errors import UserError
from vit_jax.evaluation import check_tokenizer
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from vit_jax.pretrained.folder_tokenizer import folder_tokenizer
from vit_jax.pretrained.huggingface import read_inputs
from vit_jax.pretrained.identification import identify
from vit_jax.pretrained.stored import open_stored_model
from vit_jax.pretrained.weight_files import known_formats, load_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.unwrapping import unwrap

WORDS = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "[UNK]": 3, "cat": 4, "dog": 5}
VIT = ModelSpec(architecture=CONFIGS["vit"], inputs=ImageInputs())


def write(path, content):
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """Copies a model of transformers into a folder; returns the folder."""

    def copy(name, **changes):
        path, _ = split_reference(f"transformers_{name}.safetensors", tmp_path)
        path.rename(tmp_path / "model.safetensors")
        config = json.loads((DATA / f"transformers_{name}.json").read_text())
        write(tmp_path / "config.json", config | changes)
        return tmp_path

    return copy


def save_tokenizer(folder, template="$A <eos>", **settings):
    model = hf.Tokenizer(hf.models.WordLevel(WORDS, unk_token="[UNK]"))
    model.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    if template:
        marks = [(t, WORDS[t]) for t in ("<bos>", "<eos>")]
        model.post_processor = hf.processors.TemplateProcessing(template, special_tokens=marks)
    model.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", settings)


def test_siglip_with_a_tokenizer_json(folder):
    """It is used, with the tokens that the folder states; the ids are those of the file."""
    path = folder("siglip")
    write(path / "preprocessor_config.json", {"image_processor_type": "SiglipImageProcessor"})
    save_tokenizer(path, pad_token="<pad>", tokenizer_class="GemmaTokenizer")
    model = vit_jax.create_model(weights=path)
    assert model.spec.tokenizer == f"huggingface:{path}/tokenizer.json?end=<eos>&pad=<pad>"
    np.testing.assert_array_equal(model.tokenize("cat dog"), [[4, 5, 1, 0, 0, 0, 0, 0, 0]])
    # The same vocabulary is published as a SentencePiece model.
    check_tokenizer(model.tokenize, "sentencepiece", model.spec, "x")
    with pytest.raises(UserError, match="trained with a tokenizer of the kind 'clip'"):
        check_tokenizer(model.tokenize, "clip", model.spec, "x")


@pytest.mark.parametrize(
    ("template", "settings", "expected"),
    [
        (
            "<bos> $A <eos>",
            {"pad_token": {"content": "<pad>"}, "tokenizer_class": "Mine"},
            "?start=<bos>&end=<eos>&pad=<pad>",
        ),
        (
            None,
            {"add_eos_token": True, "eos_token": "<eos>", "pad_token": "<pad>"},
            "?end=<eos>&pad=<pad>&clean=canonicalize",
        ),
        (
            "$A <eos>",
            {"pad_token": "<eos>", "tokenizer_class": "SiglipTokenizer"},
            "?end=<eos>&pad=<eos>&clean=canonicalize",
        ),
        (
            "$A <eos>",
            {"pad_token": "<pad>", "do_lower_case": True, "tokenizer_class": "GemmaTokenizerFast"},
            "?end=<eos>&pad=<pad>&clean=lower",
        ),
        ("$A <eos>", {}, None),
        (None, {"pad_token": "<pad>", "eos_token": "<eos>"}, None),
        ("$A <eos>", {"pad_token": "<pad>", "padding_side": "left"}, None),
    ],
)
def test_tokens_of_a_tokenizer_json(template, settings, expected, tmp_path, caplog):
    """A spec without a path asks for the tokenizer, and a warning gives the reason."""
    save_tokenizer(tmp_path, template, **settings)
    found = folder_tokenizer(tmp_path, "siglip", 50)
    if expected is not None:
        assert found == f"huggingface:{tmp_path}/tokenizer.json{expected}"
    else:
        assert found == "huggingface"
        assert "name the tokenizer, as tokenizer=huggingface:" in caplog.text


def test_clips_tokenizer_only_where_the_folder_has_its_ids(tmp_path):
    """Of the same kind and size, another vocabulary is not OpenAI's."""
    assert folder_tokenizer(tmp_path, "siglip", 49408) == "sentencepiece"
    assert folder_tokenizer(tmp_path, "clip", 49408) == "clip"
    assert folder_tokenizer(tmp_path, "clip", 50) == "huggingface"
    words = {**clip_model().get_vocab(), "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    write(tmp_path / "vocab.json", words)
    assert folder_tokenizer(tmp_path, "clip", 49408) == "clip"
    write(tmp_path / "vocab.json", words | {"cat</w>": words["dog</w>"], "dog</w>": 2368})
    assert folder_tokenizer(tmp_path, "clip", 49408) == "huggingface"
    (tmp_path / "spiece.model").touch()
    assert folder_tokenizer(tmp_path, "siglip", 32000) == f"sentencepiece:{tmp_path}/spiece.model"


def test_openais_marks_decide_the_activation(tmp_path):
    """The settings in the file, under a name with the exact GELU; a contradiction is an error."""
    source, _ = split_reference("clip_tiny.safetensors", tmp_path)
    exact = dataclasses.replace(
        CONFIG,
        image=dataclasses.replace(CONFIG.image, activation="gelu"),
        text=dataclasses.replace(CONFIG.text, activation="gelu"),
    )
    named = ModelSpec(architecture=exact, inputs=ImageInputs())
    assert identify(source, named).source.architecture == exact
    file = open_weights(source)
    settings = {"input_resolution": 16, "context_length": 9, "vocab_size": 50}
    tensors = {key: file.read(key) for key in file}
    marked = tensors | {key: np.asarray(value) for key, value in settings.items()}
    save_file(marked, tmp_path / "openai.safetensors")
    assert identify(tmp_path / "openai.safetensors", named).source.architecture == CONFIG
    with pytest.raises(UserError, match=r"states image.activation='quick_gelu'; .* 'gelu'"):
        load_weights(tmp_path / "openai.safetensors", ModelDef(exact))


def test_open_clips_folder(tmp_path):
    """Architecture, QuickGELU and preprocessing are those of its description."""
    source, _ = split_reference("clip_tiny.safetensors", tmp_path)
    source.rename(tmp_path / "open_clip_model.safetensors")
    vision = {"image_size": 16, "layers": 3, "width": 32, "patch_size": 4, "head_width": 8}
    text = {"context_length": 9, "vocab_size": 50, "width": 24, "heads": 3, "layers": 2}
    model = {"embed_dim": 20, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    write(tmp_path / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": preprocess})
    found = identify(tmp_path)
    architecture = found.source.architecture
    assert dataclasses.replace(architecture.image, weight_init="normal") == CONFIG.image
    assert (architecture.text, architecture.embed_dim) == (CONFIG.text, CONFIG.embed_dim)
    assert found.spec("").inputs == ImageInputs(size=(16, 16), resize="squash")
    assert found.tokenizer == "clip"
    write(
        tmp_path / "open_clip_config.json",
        {"model_cfg": model | {"vision_cfg": vision | {"attentional_pool": True}}},
    )
    with pytest.raises(UserError, match=r"vision_cfg.attentional_pool=False; found True"):
        identify(tmp_path)


def test_timms_folder(tmp_path):
    """The preprocessing is that of the weights, not that of the named model."""
    path, _ = split_reference("timm_vit.safetensors", tmp_path)
    settings = {"input_size": [3, 16, 16], "crop_pct": 0.5, "interpolation": "bilinear"}
    write(
        tmp_path / "config.json",
        {"architecture": "vit_of_mine", "pretrained_cfg": {**settings, "mean": CLIP_MEAN}},
    )
    found = identify(path, VIT).inputs
    assert (found.size, found.crop_fraction, found.interpolation) == ((16, 16), 0.5, "bilinear")
    assert (found.mean, found.std) == (CLIP_MEAN, IMAGENET_STD)
    write(tmp_path / "config.json", {"architecture": "vit_base_patch16_224", "global_pool": "avg"})
    with pytest.raises(UserError, match=r"expected global_pool 'token'.* found 'avg'"):
        identify(path, VIT)


def test_the_folder_decides_what_no_tensor_shows(folder, caplog):
    """Heads, epsilon and activation of config.json, and not those of the named model."""
    path = folder("vit_bare", hidden_act="gelu_new", layer_norm_eps=1e-3)
    stated = identify(path).source.architecture
    assert (stated.activation, stated.norm_epsilon) == ("gelu_tanh", 1e-3)
    named = dataclasses.replace(
        stated, activation="gelu", norm_epsilon=1e-6, num_heads=1, drop_path=0.1
    )
    found = identify(path, ModelSpec(architecture=named, inputs=ImageInputs()))
    assert found.source.architecture == dataclasses.replace(stated, drop_path=0.1)
    assert "states activation=gelu_tanh, used instead of gelu" in caplog.text


def test_a_config_that_contradicts_the_tensors(folder):
    path = folder("vit", image_size=32)
    write(path / "preprocessor_config.json", {})
    with pytest.raises(UserError, match=r"position_embeddings: expected .1, 65, 16., found .1, 17"):
        vit_jax.create_model(weights=path)
    path = folder("vit", id2label={"0": "cat", "1": "dog"})
    with pytest.raises(UserError, match=r"expected id2label with the 5 classes .* found 2"):
        identify(path)


def test_the_end_of_text(folder):
    """2 stands for the largest id of a text, as the last id of the vocabulary is."""
    for end, expected in ((2, None), (49, None), (7, 7)):
        path = folder("clip")
        config = json.loads((path / "config.json").read_text())
        config["text_config"]["eos_token_id"] = end
        write(path / "config.json", config)
        assert identify(path).architecture.text.end_id == expected


def test_several_sets_of_weights_are_asked_for(tmp_path):
    """The error names them, and the option that selects one; the prefixes do not matter."""
    model, path = ModelDef(VIT.architecture), DATA / "torch_averaged.pt"
    message = (
        r"found several: state_dict \(56 .*, state_dict_ema \(56 .*torch_averaged.pt#state_dict"
    )
    with pytest.raises(UserError, match=message):
        open_stored_model(str(path), "", VIT, {})
    plain, _ = split_reference("timm_vit.safetensors", tmp_path)
    expected = open_weights(plain).read("norm.weight")
    dino = DATA / "torch_dino.pt"
    with pytest.raises(UserError, match=r"found several: student \(.*, teacher"):
        identify(dino, VIT)
    for name, added in ((f"{path}#state_dict", 0), (f"{dino}#teacher", 1)):
        found = load_weights(name, model)["norm"]["scale"]
        np.testing.assert_array_equal(found, expected + np.float32(added))
    with pytest.raises(UserError, match="unknown key 'teachers'; did you mean 'teacher'"):
        open_weights(f"{dino}#teachers")


@pytest.fixture(scope="module")
def vit():
    """Tensors of a ViT of timm, not read."""
    file = open_weights(DATA / "timm_vit.safetensors")
    return {key: file.tensor(key) for key in file if not key.startswith("reference.")}


def unwrapped(tensors):
    return unwrap(TensorFile(pathlib.Path("x"), tensors), known_formats())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.model.", "backbone.", "my_net.vit.", ""])
def test_prefixes_of_flat_files(vit, prefix):
    """Wrappers at the start or within the names, and a prefix of the user's own."""
    wrapped = {
        prefix + key.replace("attn.", "_checkpoint_wrapped_module._orig_mod.attn."): tensor
        for key, tensor in vit.items()
    }
    assert list(unwrapped(wrapped)) == list(vit)


def test_a_head_beside_the_backbone(vit, tmp_path):
    """It is used by a model that has one; other tensors are left out."""
    heads = {key: tensor for key, tensor in vit.items() if key.startswith("head.")}
    body = {f"backbone.{k}": t for k, t in vit.items() if k not in heads}
    tensors = {key: tensor.load() for key, tensor in (body | heads).items()}
    save_file({**tensors, "loss.center": np.zeros(3)}, tmp_path / "x")
    found = load_weights(tmp_path / "x", ModelDef(VIT.architecture))
    np.testing.assert_array_equal(found["head"]["bias"], tensors["head.bias"])


def test_two_models_in_a_flat_file(vit, tmp_path):
    both = vit | {f"model_ema.{key}": tensor for key, tensor in vit.items()}
    with pytest.raises(UserError, match=r"found several: \. \(56 tensors\), model_ema"):
        unwrapped(both)
    save_file({key: tensor.load() for key, tensor in both.items()}, tmp_path / "x")
    for part in (".", "model_ema"):
        found = unwrap(open_weights(f"{tmp_path}/x#{part}"), known_formats())
        assert list(found.without_beside()) == sorted(vit)


def square(side=224, **changes):
    return ImageInputs(size=(side, side), **changes)


CLIP_INPUTS = {"mean": CLIP_MEAN, "std": CLIP_STD}


@pytest.mark.parametrize(
    ("settings", "model_type", "expected"),
    [
        ({}, "clip", square(**CLIP_INPUTS)),
        ({}, "siglip", square(resize="squash")),
        ({}, "vit", square(resize="squash", interpolation="bilinear")),
        ({}, "deit", square(resize="squash", crop_fraction=224 / 256)),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224}, "vit",
         square(**CLIP_INPUTS)),
        ({"image_processor_type": "ViTFeatureExtractor", "size": 384}, "x",
         square(384, resize="squash", interpolation="bilinear")),
        ({"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 384}}, "dinov2",
         square(336, crop_fraction=336 / 384, **CLIP_INPUTS)),
        ({"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 32, "width": 64}},
         "siglip", ImageInputs(size=(32, 64), resize="squash")),
        ({}, "owlvit", square(768, resize="squash", **CLIP_INPUTS)),
        ({"feature_extractor_type": "OwlViTFeatureExtractor", "size": [840, 840]}, "x",
         square(840, resize="squash", **CLIP_INPUTS)),
        ({"image_processor_type": "Owlv2ImageProcessor", "do_pad": True}, "x",
         square(960, resize="corner", interpolation="bilinear", **CLIP_INPUTS)),
        ({"size": 352, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}, "clipseg",
         square(352, resize="squash", interpolation="bilinear",
                mean=IMAGENET_MEAN, std=IMAGENET_STD)),
        ({}, "grounding-dino",
         square(1333, resize="fit", shortest_edge=800, interpolation="bilinear",
                mean=IMAGENET_MEAN, std=IMAGENET_STD)),
        ({"pad_size": None}, "sam",
         square(1024, resize="longest", interpolation="bilinear", mean=IMAGENET_MEAN,
                std=IMAGENET_STD)),
        ({"do_normalize": False}, "siglip",
         square(resize="squash", mean=(0.0,) * 3, std=(1.0,) * 3)),
    ],
)  # fmt: skip
def test_image_processors(settings, model_type, expected, tmp_path):
    """Absent values are the defaults of the image processor; in both files."""
    write(tmp_path / "preprocessor_config.json", settings)
    assert read_inputs(tmp_path, model_type) == expected
    write(tmp_path / "preprocessor_config.json", {"size": 8})
    write(tmp_path / "processor_config.json", {"image_processor": settings})
    assert read_inputs(tmp_path, model_type) == expected


@pytest.mark.parametrize(
    ("settings", "model_type", "message"),
    [
        ({"size": 224, "do_center_crop": False, "resample": 3}, "mine",
         "expected image_mean; .*add"),
        ({"do_rescale": False}, "vit", "expected do_rescale=True; found False"),
        ({"rescale_factor": 1 / 127.5}, "vit", "expected rescale_factor 1/255"),
        ({"do_pad": False}, "owlv2", "expected do_pad=True; found False"),
        ({"resample": 1}, "vit", "expected resample 2 or 3; found 1"),
        ({"image_mean": [0.5]}, "vit", "expected three values of image_mean"),
        ({"do_center_crop": False}, "clip", "a square center crop; found size=.*crop_size=None"),
        ({"crop_size": 256, "size": 224}, "clip", "at most as large .* 256 x 256 of 224 x 224"),
    ],
)  # fmt: skip
def test_image_processors_that_are_not_available(settings, model_type, message, tmp_path):
    write(tmp_path / "preprocessor_config.json", settings)
    with pytest.raises(UserError, match=message):
        read_inputs(tmp_path, model_type)


def test_other_classes_than_the_named_ones(tmp_path):
    """The head of the file, a fresh one, or none."""
    path, _ = split_reference("timm_vit.safetensors", tmp_path)
    model = CONFIGS["vit"]
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    fields.pop("num_classes")
    found = vit_jax.create_model("vit_b16", path, **fields)
    assert found.spec.architecture == model
    other = vit_jax.create_model("vit_b16", path, **fields, num_classes=3)
    assert other.params["head"]["bias"].shape == (3,)
    np.testing.assert_array_equal(other.params["norm"]["scale"], found.params["norm"]["scale"])
    none = vit_jax.create_model("vit_b16", path, **fields, num_classes=0)
    assert none.params.keys() == found.params.keys() - {"head"}


def test_the_crop_decides_the_input(folder):
    """A folder of 16 px whose image processor crops 24 px; positions are resized."""
    path = folder("dinov2")
    write(
        path / "preprocessor_config.json",
        {
            "image_processor_type": "BitImageProcessor",
            "image_mean": IMAGENET_MEAN,
            "image_std": IMAGENET_STD,
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 24, "width": 24},
        },
    )
    model = vit_jax.create_model(weights=path)
    assert model.spec.inputs == square(24, crop_fraction=0.75, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert model.params["positions"].shape == (1 + 36, 16)
