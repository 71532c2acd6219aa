"""timm at published sizes (pytest -m parity; needs the extra `parity`)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("timm")

import timm
import torch
from timm.models.eva import checkpoint_filter_fn as filter_eva
from timm.models.swin_transformer import checkpoint_filter_fn

from tests.fixtures.generators import make_resnet, make_timm
from tests.parity.live import check, check_names, compare, random_images
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.models.swin import zoo as swin
from vit_jax.models.swin.weights import OfficialSwin
from vit_jax.models.vit import zoo as vit
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights

pytestmark = pytest.mark.parity

SWINS = ("swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224")
RESNETS = ("resnet50", "resnet101")


def architecture(name: str):
    return model_spec(name).architecture


def channels_first(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2)


# Our aliases without tags of weights, as far as timm has these models.
TIMM_NAMES = sorted(
    name
    for name in {alias.partition(".")[0] for alias in [*vit.ALIASES, *swin.ALIASES, *RESNETS]}
    if timm.is_model(name)
)


def test_most_aliases_are_names_of_timm():
    assert len(TIMM_NAMES) > 30


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_names_and_shapes(name):
    """Of all registered names of timm, without computing anything."""
    spec = model_spec(name)
    with torch.device("meta"):
        # Some names have no head by default.
        theirs = timm.create_model(name, num_classes=spec.architecture.num_classes)
    check_names(theirs, ModelDef(spec.architecture), "timm")


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "deit_base_distilled_patch16_224",
        "deit3_small_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3_qkvb",
        "vit_small_plus_patch16_dinov3",
    ],
)
def test_vit(name, tmp_path):
    """All blocks, and logits or pooled features; DINOv2 at 224 px, where it is quick."""
    theirs = timm.create_model(name, img_size=224, global_pool="token")
    make_timm.randomise(theirs)
    model = ModelDef(dataclasses.replace(architecture(name), image_size=224))
    depth = model.architecture.depth

    def forward(images):
        blocks = make_timm.record(theirs.blocks)
        outputs = {"outputs": theirs(channels_first(images))}
        return outputs | {f"block_{i}": block for i, block in enumerate(blocks)}

    def ours(module, images):
        outputs = {f"block_{i}": x for i, x in enumerate(module.features(images, range(depth)))}
        return outputs | {"outputs": module(images)}

    compare(theirs, forward, model, ours, (random_images(1, 224, 224, 3),), "timm", tmp_path)


def test_dinov3_of_its_authors(tmp_path):
    """Exported under the names of the authors, and read by timm."""
    name = "vit_small_plus_patch16_dinov3_qkvb"
    theirs = timm.create_model(name, img_size=224, global_pool="token").eval()
    model = ModelDef(dataclasses.replace(architecture(name), image_size=224))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape, scale=0.05).astype(np.float32), model.shapes()
    )
    save_weights(params, model, tmp_path / "x.safetensors", "dinov3")
    file = open_weights(tmp_path / "x.safetensors")
    state = {key: torch.from_numpy(file.read(key)) for key in file}
    theirs.load_state_dict(filter_eva(state, theirs), strict=True)
    images = random_images(1, 224, 224, 3)
    with torch.no_grad():
        expected = theirs(channels_first(torch.from_numpy(images))).numpy()
    found = jax.jit(lambda p, x: model.bind(p).encode_image(x))(params, images)
    check(name, {"pooled": found}, {"pooled": expected})


def outputs_of_stages(module, images):
    stages = {f"stage_{i}": x for i, x in enumerate(module.features(images, range(4)))}
    return stages | {"logits": module(images)}


@pytest.mark.parametrize("size", [(224, 224), (320, 256)])
@pytest.mark.parametrize("name", SWINS)
def test_swin(name, size, tmp_path):
    """All stages and logits of a model that timm creates for that size."""
    theirs = timm.create_model(name, img_size=size)
    make_timm.randomise(theirs)
    model = ModelDef(architecture(name))

    def forward(images):
        x = theirs.patch_embed(channels_first(images))
        stages = {f"stage_{i}": (x := layer(x)) for i, layer in enumerate(theirs.layers)}
        return stages | {"logits": theirs(channels_first(images))}

    images = (random_images(1, *size, 3),)
    compare(theirs, forward, model, outputs_of_stages, images, "timm", tmp_path)


def test_official_swin(tmp_path):
    """Exported weights are read by timm, and have the same buffers."""
    name = SWINS[0]
    theirs = timm.create_model(name)
    model = ModelDef(architecture(name))
    params = model.init(jax.random.key(0))
    save_weights(params, model, tmp_path / "swin.safetensors", "swin")
    file = open_weights(tmp_path / "swin.safetensors")
    state = {key: torch.from_numpy(file.read(key)) for key in file}
    theirs.load_state_dict(checkpoint_filter_fn(state, theirs), strict=True)
    images = random_images(1, 224, 224, 3)
    with torch.no_grad():
        expected = theirs.eval()(channels_first(torch.from_numpy(images))).numpy()
    found = model.bind(load_weights(tmp_path / "swin.safetensors", model))(jnp.asarray(images))
    check("swin", {"logits": found}, {"logits": expected})
    buffers = {key: value.numpy() for key, value in theirs.named_buffers()}
    ours = OfficialSwin().constants(model.architecture)
    assert ours.keys() == buffers.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, buffers[key], strict=True)


def test_resnet(tmp_path):
    theirs = timm.create_model("resnet50")
    make_resnet.randomise(theirs, half=False)
    model = ModelDef(architecture("resnet50"))

    def forward(images):
        x = channels_first(images)
        stages = {
            f"stage_{i}": x.permute(0, 2, 3, 1)
            for i, x in enumerate(theirs.forward_intermediates(x, intermediates_only=True)[1:])
        }
        return stages | {"logits": theirs(x)}

    images = (random_images(1, 224, 224, 3),)
    compare(theirs, forward, model, outputs_of_stages, images, "timm", tmp_path)
