"""Models by name: the public interface, and what other systems take from the towers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_jax
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.clip import consumers
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD
from vit_jax.pretrained.weight_files import save_weights

IMAGE = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 3, "num_heads": 2, "mlp_dim": 48}


@pytest.fixture(scope="module")
def classifier():
    return vit_jax.create_model("vit_base_patch16_224", **IMAGE, num_classes=5)


@pytest.fixture(scope="module")
def clip():
    """A small pair with CLIP's own tokenizer."""
    spec = vit_jax.pretrained.registry.model_spec("ViT-B-32-quickgelu")
    image = type(spec.architecture.image)(**{**vars(spec.architecture.image), **IMAGE})
    text = type(spec.architecture.text)(
        **{**vars(spec.architecture.text), "width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32}
    )
    return vit_jax.create_model("ViT-B-32-quickgelu", image=image, text=text, embed_dim=12)


def test_classifier(classifier, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    pixels = classifier.preprocess(tmp_path / "picture.png")
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, classifier.preprocess(picture))
    np.testing.assert_array_equal(pixels, classifier.preprocess(Image.fromarray(picture)))
    assert classifier(pixels[None]).shape == (1, 5)
    blocks = classifier.features(pixels[None], layers=(0, -1))
    assert [b.shape for b in blocks] == [(1, 17, 24)] * 2
    with pytest.raises(UserError, match="no model of the family vit has a text tower"):
        classifier.encode_text(np.zeros((1, 77), np.int32))
    with pytest.raises(UserError, match="family vit reads no text"):
        classifier.tokenize  # noqa: B018


def test_pair(clip):
    tokens = clip.tokenize(["a cat", "two dogs"])
    assert tokens.shape == (2, 77)
    embeddings = clip.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, rtol=1e-5)
    plain = clip.encode_text(tokens)
    np.testing.assert_allclose(
        plain / np.linalg.norm(plain, axis=-1, keepdims=True), embeddings, rtol=1e-5, atol=1e-6
    )
    assert clip.encode_image(np.zeros((1, 32, 32, 3)), normalize=True).shape == (1, 12)
    with pytest.raises(UserError, match="no model of the family clip classifies"):
        clip(np.zeros((1, 32, 32, 3)))


def test_preprocessing_equals_torchvisions_arithmetic(classifier):
    """Shortest edge to floor(32 / 0.9) = 35 px, long edge to int(35 * 50 / 40) = 43."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 50, 3), np.uint8))
    resized = picture.resize((43, 35), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((6, 2, 38, 34)), np.float32) / 255
    np.testing.assert_allclose(classifier.preprocess(picture), (expected - 0.5) / 0.5, atol=1e-6)


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


def test_weights_that_carry_their_description(tmp_path):
    """A folder as Hugging Face's hub has them: config.json and model.safetensors."""
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
    assert found.spec.preprocess == ImageInputs(
        crop_fraction=224 / 256, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def test_wrong_names():
    with pytest.raises(UserError, match="did you mean 'swin_tiny_patch4_window7_224'"):
        vit_jax.create_model("swin_tiny_patch4_window_224")
    with pytest.raises(UserError, match="unknown field of vit_b16 'num_class'; did you mean"):
        vit_jax.create_model("vit_b16", num_class=3)
    with pytest.raises(AttributeError, match="has no attribute 'create'"):
        vit_jax.create  # noqa: B018


# --- what other systems take ----------------------------------------------------------------------


def blocks_one_by_one(tower, x):
    """Hidden states as others count them: the input, then the output of every block."""
    graphdef, params = nnx.split(tower.transformer.blocks)
    states = [x]
    for i in range(tower.config.depth):
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], params))
        states.append(block(states[-1]))
    return states


def test_llava(clip):
    model = clip.definition.bind(clip.params)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    states = blocks_one_by_one(model.image, model.image.pre_norm(model.image._embed(images)))
    found = consumers.llava_features(model, images)
    assert found.shape == (2, 16, 24)
    np.testing.assert_allclose(found, states[-2][:, 1:], rtol=1e-5, atol=1e-5)


def test_qwen_vl():
    """Twice the resolution of the positions; patches of the last block, without a norm."""
    model = vit_jax.create_model("qwen_vl_bigg14", **IMAGE)
    module = model.definition.bind(model.params)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)
    states = blocks_one_by_one(module, module.pre_norm(module._embed(images)))
    found = consumers.qwen_vl_features(module, images)
    assert found.shape == (2, 64, 24)
    np.testing.assert_allclose(found, states[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_stable_diffusion(clip, clip_skip):
    model = clip.definition.bind(clip.params)
    tokens = clip.tokenize(["a cat", "two dogs"])
    x = model.text.token_embed(tokens) + model.text.positions[...]
    expected = blocks_one_by_one(model.text, x)[-1 - clip_skip]
    found = consumers.stable_diffusion_states(model, tokens, clip_skip=clip_skip, final_norm=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    found = consumers.stable_diffusion_states(model, tokens, clip_skip=clip_skip)
    np.testing.assert_allclose(found, model.text.norm(expected), rtol=1e-5, atol=1e-5)
    states, pooled = consumers.sdxl_states(model, model, tokens, tokens)
    assert states.shape == (2, 77, 32)
    np.testing.assert_allclose(pooled, model.encode_text(tokens), rtol=1e-6)
