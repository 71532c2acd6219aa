"""Models by name: the public interface."""

import json

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

import vit_jax
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.layers.positions import resize_positions
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD
from vit_jax.models.swin.windows import resize_bias_table
from vit_jax.pretrained import native
from vit_jax.pretrained.weight_files import save_weights

IMAGE = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 3, "num_heads": 2, "mlp_dim": 48}


@pytest.fixture(scope="module")
def classifier():
    return vit_jax.create_model("vit_base_patch16_224", **IMAGE, num_classes=5)


@pytest.fixture(scope="module")
def clip():
    """A small dual encoder with CLIP's tokenizer."""
    text = {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32}
    return vit_jax.create_model("ViT-B-32-quickgelu", image=IMAGE, text=text, embed_dim=12)


def test_classifier(classifier, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    pixels = classifier.preprocess(tmp_path / "image.png")
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, classifier.preprocess(image))
    np.testing.assert_array_equal(pixels, classifier.preprocess(Image.fromarray(image)))
    assert classifier(pixels[None]).shape == (1, 5)
    blocks = classifier.features(pixels[None], layers=(0, -1))
    assert [b.shape for b in blocks] == [(1, 17, 24)] * 2
    with pytest.raises(UserError, match="vit models have no text tower"):
        classifier.encode_text(np.zeros((1, 77), np.int32))
    with pytest.raises(UserError, match="vit models read no text"):
        classifier.tokenize  # noqa: B018


def test_preprocess_takes_images_of_any_kind_within_the_limit(tmp_path):
    model = vit_jax.create_model("vit_ti16", **IMAGE, max_image_pixels=2000)
    levels = np.random.default_rng(0).integers(0, 1 << 16, (40, 50), np.uint16)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "grey.png"
    Image.fromarray(levels).save(path, exif=exif)
    expected = model.preprocess(np.repeat(np.rot90(levels >> 8, -1)[..., None], 3, 2) / 255)
    for image in (path, Image.open(path), path.read_bytes(), np.rot90(levels, -1)):
        np.testing.assert_array_equal(model.preprocess(image), expected)
    Image.new("L", (50, 41)).save(path)
    with pytest.raises(UserError, match=r"grey.png: 50 x 41 px are more than max_image_pixels"):
        model.preprocess(path)
    with pytest.raises(UserError, match="max_image_pixels=-1: expected a number of pixels"):
        vit_jax.create_model("vit_ti16", **IMAGE, max_image_pixels=-1)


def test_dual_encoder(clip):
    tokens = clip.tokenize(["a cat", "two dogs"])
    assert tokens.shape == (2, 77)
    embeddings = clip.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, rtol=1e-5)
    plain = clip.encode_text(tokens)
    np.testing.assert_allclose(
        plain / np.linalg.norm(plain, axis=-1, keepdims=True), embeddings, rtol=1e-5, atol=1e-6
    )
    assert clip.encode_image(np.zeros((1, 32, 32, 3)), normalize=True).shape == (1, 12)
    with pytest.raises(UserError, match="clip models do not classify images"):
        clip(np.zeros((1, 32, 32, 3)))


def test_preprocessing_has_the_arithmetic_of_torchvision(classifier):
    """Shortest edge to floor(32 / 0.9) = 35 px, long edge to int(35 * 50 / 40) = 43."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 50, 3), np.uint8))
    resized = image.resize((43, 35), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((6, 2, 38, 34)), np.float32) / 255
    np.testing.assert_allclose(classifier.preprocess(image), (expected - 0.5) / 0.5, atol=1e-6)


def test_same_seed_same_parameters_and_another_seed_others():
    make = lambda seed: vit_jax.create_model("vit_ti16", **IMAGE, seed=seed).params  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, make(1), make(1))
    assert not np.array_equal(make(1)["positions"], make(2)["positions"])


def test_list_models():
    small = {model.name: model for model in vit_jax.list_models("vit_s*")}
    assert set(small) == {"vit_s32", "vit_s16", "vit_s8", "vit_so400m14"}
    assert small["vit_s16"].parameters == 22_050_664
    # timm's 4.25 G multiply-adds leave attention's products out; by hand with them: 12 blocks of
    # 197 tokens, the patches, the head.
    block = 197 * (12 * 384**2 + 2 * 197 * 384)
    by_hand = 2 * (12 * block + 196 * 768 * 384)
    assert small["vit_s16"].gflops == pytest.approx(by_hand / 1e9, rel=1e-6)
    assert vit_jax.list_models("nothing*") == []


def test_weights_that_describe_their_model(tmp_path):
    """A folder as on the Hugging Face Hub: config.json and model.safetensors."""
    model = vit_jax.create_model("deit_tiny_patch16_224", seed=3)
    save_weights(model.params, model.definition, tmp_path / "model.safetensors", "transformers")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "vit",
                "architectures": ["ViTForImageClassification"],
                "hidden_size": 192,
                "num_hidden_layers": 12,
                "num_attention_heads": 3,
                "intermediate_size": 768,
                "layer_norm_eps": 1e-6,
                "num_labels": 1000,
            }
        )
    )
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json"):
        vit_jax.create_model(weights=tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_center_crop": True,
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
                "resample": 3,
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
            }
        )
    )
    found = vit_jax.create_model(weights=tmp_path)
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    np.testing.assert_allclose(found(images), model(images), rtol=1e-5, atol=1e-5)
    assert found.spec.inputs == ImageInputs(
        size=(224, 224), crop_fraction=224 / 256, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def test_wrong_names():
    with pytest.raises(UserError, match="did you mean 'swin_tiny_patch4_window7_224'"):
        vit_jax.create_model("swin_tiny_patch4_window_224")
    with pytest.raises(UserError, match=r"vit_b16\.num_class.*did you mean.*num_classes"):
        vit_jax.create_model("vit_b16", num_class=3)
    with pytest.raises(AttributeError, match="has no attribute 'create'"):
        vit_jax.create  # noqa: B018


def test_image_size_resizes_the_positions(tmp_path):
    """Of a registered name, to a grid that is not square."""
    model = vit_jax.create_model("vit_b16", **IMAGE)
    path = tmp_path / "timm.safetensors"
    save_weights(model.params, model.definition, path, "timm")
    changed = {**IMAGE, "image_size": (16, 48)}
    found = vit_jax.create_model("vit_b16", path, **changed)
    expected = resize_positions(model.params["positions"], (4, 4), (2, 6), 1)
    np.testing.assert_array_equal(found.params["positions"], expected)
    image = np.zeros((20, 60, 3), np.uint8)
    assert found.preprocess(image).shape == (16, 48, 3)
    assert found(found.preprocess(image)[None]).shape == (1, 1000)


def test_weights_of_a_grid_that_is_not_square(tmp_path):
    """The description of the library's own format has the grid of the positions."""
    model = vit_jax.create_model("vit_b16", **{**IMAGE, "image_size": (16, 48)})
    native.save(tmp_path, model.params, model.spec)
    same = vit_jax.create_model(weights=tmp_path)
    np.testing.assert_array_equal(same.params["positions"], model.params["positions"])
    assert same.spec == model.spec
    # The new grid has as many patches as the old one, in another arrangement.
    turned = vit_jax.create_model(weights=tmp_path, image_size=(48, 16))
    expected = resize_positions(model.params["positions"], (2, 6), (6, 2), 1)
    np.testing.assert_array_equal(turned.params["positions"], expected)


@pytest.mark.release
def test_weights_of_swin_and_of_clips_resnet_at_another_size(tmp_path):
    """Bias tables and positions of the pool, in the library's own format."""
    stages = {"width": 8, "depths": (1, 1), "num_heads": (1, 2)}
    swin = vit_jax.create_model("swin_t", image_size=(24, 32), **stages, window_size=4)
    native.save(tmp_path / "swin", swin.params, swin.spec)
    found = vit_jax.create_model(weights=tmp_path / "swin", image_size=(32, 32))
    table = swin.params["stage1"]["blocks"]["attention"]["bias_table"][0]
    expected = resize_bias_table(table, (3, 4), (4, 4), "geometric")
    resized = found.params["stage1"]["blocks"]["attention"]["bias_table"][0]
    np.testing.assert_array_equal(resized, expected)

    image = {"image_size": (32, 64), "depths": (1, 1, 1, 1), "width": 4, "num_heads": 4}
    text = {"width": 8, "depth": 1, "num_heads": 1, "mlp_dim": 8}
    changes = {"image": {**image, "embed_dim": 8}, "text": text, "embed_dim": 8}
    clip = vit_jax.create_model("clip_rn50", **changes)
    native.save(tmp_path / "clip", clip.params, clip.spec)
    found = vit_jax.create_model(weights=tmp_path / "clip", image_size=(96, 64))
    expected = resize_positions(clip.params["image"]["pool"]["positions"], (1, 2), (3, 2), 1)
    np.testing.assert_array_equal(found.params["image"]["pool"]["positions"], expected)


def test_image_size_of_fixed_positions(tmp_path):
    """They are not loaded but computed for the new size."""
    image = {**IMAGE, "image_size": 32}
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    model = vit_jax.create_model("mae_vit_b16", image=image, **decoder)
    save_weights(model.params, model.definition, tmp_path / "mae.safetensors", "mae")
    found = vit_jax.create_model(
        "mae_vit_b16", tmp_path / "mae.safetensors", image_size=(16, 24), image=image, **decoder
    )
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)
    assert found.spec.inputs.size == (16, 24)
