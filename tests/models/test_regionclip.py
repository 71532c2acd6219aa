"""RegionCLIP against torchvision's RoIAlign and open_clip's ResNet, and its checkpoints.

The references are those of tests/fixtures/generators/make_regionclip.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.reference import DATA, format_of, relative_error, split_reference
from tests.weights.test_clip_resnet import IMAGE, TEXT, pair
from vit_jax.errors import UserError
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.ops.boxes import xyxy_to_cxcywh
from vit_jax.models.ops.roi_align import roi_align
from vit_jax.models.regionclip.model import RegionCLIPConfig, region_probabilities
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

TOWER = CLIPResNetConfig(**IMAGE, image_size=(64, 96), pool_size=64)
MODEL = ModelDef(RegionCLIPConfig(image=TOWER, text=TEXT, embed_dim=12))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Path of a small CLIP with a ResNet, and its embeddings of images."""
    folder = tmp_path_factory.mktemp("clip")
    image_path, expected = split_reference("clip_resnet_tiny.safetensors", folder)
    text_path, _ = split_reference("clip_tiny.safetensors", folder)
    image_file, text_file = open_weights(image_path), open_weights(text_path)
    tensors = {key: image_file.read(key) for key in image_file}
    tensors |= {key: text_file.read(key) for key in text_file if not key.startswith("visual.")}
    tensors["text_projection"] = np.ascontiguousarray(tensors["text_projection"][:, :12])
    write_tensors(folder / "clip.safetensors", tensors)
    return folder / "clip.safetensors", expected


@pytest.fixture(scope="module")
def params(weights):
    """The weights of CLIP in a RegionCLIP."""
    return load_weights(weights[0], MODEL)


@pytest.fixture(scope="module")
def reference():
    with np.load(DATA / "regionclip_tiny.npz") as file:
        found = {key: file[key].astype(np.float32) for key in file}
    arrays = {key: jnp.asarray(value) for key, value in found.items()}
    return arrays | {"boxes": xyxy_to_cxcywh(arrays["boxes"]) / jnp.asarray([96, 64] * 2)}


MASK = jnp.asarray([[True, True, False, True]])


@pytest.fixture(scope="module")
def queries():
    found = np.random.default_rng(0).normal(size=(1, 4, 12))
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def found(params, reference, queries):
    """Sampled regions, their embeddings, logits and probabilities, by one program."""

    @jax.jit
    def run(params, images, boxes, queries):
        module = MODEL.bind(params)
        [features] = module.image.features(images, (2,))
        corners = jnp.concatenate(
            [boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1
        )
        regions = roi_align(features, corners * jnp.asarray([6, 4] * 2), (4, 4))
        logits = module.classify_regions(images, boxes, queries, MASK)
        return {
            "regions": regions.reshape(10, 4, 4, -1),
            "embeddings": module.encode_regions(images, boxes),
            "logits": logits,
            "probabilities": region_probabilities(logits),
        }

    params = {**params, "logit_scale": jnp.log(100.0)}
    return run(params, reference["images"], reference["boxes"], jnp.float32(queries))


@pytest.mark.parametrize("name", ["regions", "embeddings"])
def test_same_as_torchvision_and_open_clip(name, found, reference):
    assert relative_error(np.asarray(found[name]), reference[name]) < 1e-5


def test_an_image_as_a_region_has_the_embedding_of_clip(params, weights):
    images = weights[1]["images"].astype(np.float32)
    found = jax.jit(lambda p, x: MODEL.bind(p).encode_image(x))(params, images)
    assert relative_error(np.asarray(found), weights[1]["pooled"]) < 1e-5


def test_logits_are_cosines_over_the_temperature(found, reference, queries):
    """In NumPy, float64; a masked class has no probability, and the background has the rest."""
    regions = np.asarray(reference["embeddings"], np.float64)
    regions /= np.linalg.norm(regions, axis=-1, keepdims=True)
    expected = (regions @ queries[0].T / 0.01)[..., [0, 1, 3]]
    np.testing.assert_allclose(found["logits"][..., [0, 1, 3]], expected, atol=2e-3)
    exponentials = np.exp(expected)
    expected = exponentials / (exponentials.sum(-1, keepdims=True) + 1)
    np.testing.assert_allclose(found["probabilities"][..., [0, 1, 3]], expected, atol=1e-3)
    assert not np.any(found["probabilities"][..., 2])


def as_checkpoint(clip, **more):
    """Tensors of CLIP under the names of the authors' checkpoints of pre-training."""
    found = {}
    for key in clip:
        if key.startswith("visual."):
            found[f"model.backbone.{key[7:]}"] = clip.read(key)
        elif key != "logit_scale":
            found[f"model.lang_encoder.{key}"] = clip.read(key)
    return {k: v for k, v in found.items() if not k.endswith("num_batches_tracked")} | more


def test_checkpoints_of_the_authors(params, weights, tmp_path):
    clip, path = open_weights(weights[0]), tmp_path / "regionclip.safetensors"
    part = np.zeros(3, np.float32)
    others = ("teacher_backbone.conv1.weight", "offline_backbone.stem.conv1.weight",
              "offline_proposal_generator.rpn_head.conv.weight",
              "roi_heads.box_predictor.bbox_pred.bias")  # fmt: skip
    write_tensors(path, as_checkpoint(clip, **{f"model.{key}": part for key in others}))
    assert format_of(path) == "regionclip"
    loaded = load_weights(path, MODEL)
    expected = {**params, "logit_scale": np.float32(np.log(100))}
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)

    save_weights(loaded, MODEL, tmp_path / "out.safetensors", "regionclip")
    written = {f"model.{key}" for key in open_weights(tmp_path / "out.safetensors")}
    assert written == {*as_checkpoint(clip), "model.lang_encoder.logit_scale"}
    jax.tree.map(
        np.testing.assert_array_equal, load_weights(tmp_path / "out.safetensors", MODEL), loaded
    )

    tensors = {k: v for k, v in as_checkpoint(clip).items() if "lang_encoder" not in k}
    write_tensors(path, tensors)
    with pytest.raises(UserError, match=r"expected a text tower under lang_encoder\.\*"):
        load_weights(path, MODEL)


def test_weights_of_clip_are_those_of_regionclip(weights, params, tmp_path):
    """The trees are equal, and the format of OpenAI takes them back."""
    jax.tree.map(np.testing.assert_array_equal, params, load_weights(weights[0], pair(64)))
    save_weights(params, MODEL, tmp_path / "clip.safetensors", "openai_clip")
    assert format_of(tmp_path / "clip.safetensors") == "openai_clip"


def test_errors():
    with pytest.raises(UserError, match="is CLIP's ResNet, as that of clip_rn50; found ViTConfig"):
        RegionCLIPConfig(image=ViTConfig(), text=TEXT)
    with pytest.raises(UserError, match=r"32 does not divide pool_size=\(64, 40\)"):
        dataclasses.replace(TOWER, pool_size=(64, 40))
