"""Positions at other resolutions against the live libraries (pytest -m parity).

Each model has random weights and reads larger, smaller and non-square images. The weights are
loaded twice: at their own size, where the model resizes positions on each call, and at the size of
the images, where they are resized on loading.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("transformers")

import jax
import numpy as np
import open_clip
import scipy.ndimage
import timm
import torch
import transformers as T
from safetensors.torch import save_file

from tests.fixtures.generators.transformers_outputs import randomise
from tests.parity.live import check, random_images
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.models.sizes import Size
from vit_jax.models.spec import ModelSpec
from vit_jax.pretrained.identification import identify, with_image_size
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

pytestmark = pytest.mark.parity

SIZES: dict[int, list[Size]] = {
    14: [(21, 21), (8, 8), (9, 20)],
    37: [(55, 55), (22, 22), (22, 40)],
}
DEPTH = 2
SMALL = {"num_hidden_layers": DEPTH, "hidden_size": 96, "num_attention_heads": 3}
SMALL |= {"intermediate_size": 192}
DINOV2 = {**SMALL, "image_size": 518, "patch_size": 14}
NARROW = {"embed_dim": 96, "depth": DEPTH, "num_heads": 3}


def hidden_states(model: Any, images: torch.Tensor, tower: str = "") -> dict[str, torch.Tensor]:
    """Outputs of all blocks of a model of transformers."""
    part = getattr(model, tower) if tower else model
    options = {"output_hidden_states": True}
    if "dinov2" not in type(model).__name__.lower():
        options["interpolate_pos_encoding"] = True
    states = part(images, **options).hidden_states[1:]
    return {f"block_{i}": x for i, x in enumerate(states)}


def timm_blocks(model: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of all blocks of a model of timm that accepts images of any size."""
    x, found = model._pos_embed(model.patch_embed(images)), {}
    x = model.norm_pre(x)
    for i, block in enumerate(model.blocks):
        x = block(x)
        found[f"block_{i}"] = x
    return found


TOWERS: dict[str, tuple[Callable[[], Any], str]] = {
    "vit": (lambda: T.ViTModel(T.ViTConfig(**SMALL), add_pooling_layer=False), ""),
    "deit": (lambda: T.DeiTModel(T.DeiTConfig(**SMALL), add_pooling_layer=False), ""),
    "dinov2": (lambda: T.Dinov2Model(T.Dinov2Config(**DINOV2)), ""),
    "dinov2_with_registers": (
        lambda: T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(**DINOV2)),
        "",
    ),
    "clip": (
        lambda: T.CLIPModel(
            T.CLIPConfig(vision_config={**SMALL, "patch_size": 16}, text_config=SMALL)
        ),
        "vision_model",
    ),
    "siglip": (
        lambda: T.SiglipModel(T.SiglipConfig(vision_config=SMALL, text_config=SMALL)),
        "vision_model",
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_transformers(name, tmp_path):
    make, tower = TOWERS[name]
    theirs = make().eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    source = identify(tmp_path).source.architecture
    compare(name, source, tmp_path, lambda x: hidden_states(theirs, x, tower))


TIMM = {
    "vit_base_patch16_224": {},
    "deit_base_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name, tmp_path):
    theirs = timm.create_model(name, dynamic_img_size=True, num_classes=0, **NARROW).eval()
    randomise(theirs)
    save_file(theirs.state_dict(), tmp_path / "x.safetensors")
    registered = "vit_b16" if "siglip" in name else name
    changes: dict[str, Any] = {"width": 96, "depth": DEPTH, "num_heads": 3, "num_classes": 0}
    changes["mlp_dim"] = 384
    if "siglip" in name:
        changes |= {"class_token": False, "pool": "map"}
    base = registry.model_spec(registered)
    architecture = registry.parse_architecture(changes, name, base=base.architecture)
    named = dataclasses.replace(base, architecture=architecture)
    source = identify(tmp_path / "x.safetensors", named).source.architecture
    compare(name, source, tmp_path / "x.safetensors", lambda x: timm_blocks(theirs, x))


def test_timm_created_at_another_size(tmp_path):
    """Timm resizes the table on loading, by the same rule."""
    small = timm.create_model("vit_base_patch16_224", num_classes=0, **NARROW)
    randomise(small)
    save_file(small.state_dict(), tmp_path / "x.safetensors")
    large = timm.create_model(
        "vit_base_patch16_224",
        num_classes=0,
        img_size=(144, 320),
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "x.safetensors")},
        **NARROW,
    )
    expected = large.state_dict()["pos_embed"][0].numpy()
    base = registry.model_spec("vit_b16").architecture
    changes = {"width": 96, "depth": DEPTH, "num_heads": 3, "mlp_dim": 384, "num_classes": 0}
    architecture = registry.parse_architecture(changes, "x", base=base)
    model = ModelDef(with_image_size(architecture, (144, 320), "x"))
    found = load_weights(tmp_path / "x.safetensors", model)["positions"]
    check("timm, img_size=(144, 320)", {"positions": found}, {"positions": expected})


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-16-SigLIP"])
def test_open_clip(name, tmp_path):
    """The resizing of checkpoints on loading, which `force_image_size` asks for."""
    theirs = open_clip.create_model(name)
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    base = registry.model_spec(name)
    source = identify(tmp_path / "x.pt", base).source
    for rows, columns in SIZES[14]:
        size = (rows * 16, columns * 16)
        large = open_clip.create_model(
            name, pretrained=str(tmp_path / "x.pt"), force_image_size=size
        )
        visual = large.visual
        table = (
            visual.trunk.pos_embed[0] if hasattr(visual, "trunk") else visual.positional_embedding
        )
        model = ModelDef(with_image_size(source.architecture, size, name))
        found = load_weights(tmp_path / "x.pt", model, source=source)["image"]["positions"]
        expected = {"positions": table.detach().numpy()}
        check(f"open_clip {name}, {rows} x {columns}", {"positions": found}, expected)


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_of_its_authors(registers, tmp_path):
    """Their interpolation, as published in dinov2/models/vision_transformer.py, on a table."""
    base = registry.model_spec("dinov2_s14_registers" if registers else "dinov2_s14").architecture
    changes = {"width": 96, "depth": DEPTH, "num_heads": 3, "mlp_dim": 384}
    architecture = registry.parse_architecture(changes, "x", base=base)
    shapes = ModelDef(architecture).shapes()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    save_weights(params, ModelDef(architecture), tmp_path / "x.safetensors", "dinov2")
    file = open_weights(tmp_path / "x.safetensors")
    write_tensors(tmp_path / "y.safetensors", {key: file.read(key) for key in file})
    spec = ModelSpec(architecture=architecture, inputs=registry.model_spec("dinov2_s14").inputs)
    source = identify(tmp_path / "y.safetensors", spec).source
    patches = torch.from_numpy(params["positions"][1:]).reshape(1, 37, 37, 96).permute(0, 3, 1, 2)
    for rows, columns in SIZES[37]:
        if registers:
            options: dict[str, Any] = {"size": (rows, columns), "antialias": True}
        else:
            options = {
                "scale_factor": ((rows + 0.1) / 37, (columns + 0.1) / 37),
                "antialias": False,
            }
        resized = torch.nn.functional.interpolate(patches, mode="bicubic", **options)
        assert resized.shape[-2:] == (rows, columns)
        expected = resized.permute(0, 2, 3, 1).reshape(-1, 96).numpy()
        model = ModelDef(with_image_size(source.architecture, (rows * 14, columns * 14), "x"))
        found = load_weights(tmp_path / "y.safetensors", model, source=source)["positions"][1:]
        check(f"DINOv2, {registers} registers, {rows} x {columns}", {"x": found}, {"x": expected})


def test_big_vision(tmp_path):
    """`resample_posemb` of big_vision/models/vit.py."""
    base = registry.model_spec("vit_b16")
    changes = {"width": 96, "depth": DEPTH, "num_heads": 3, "mlp_dim": 192, "pool": "map"}
    changes |= {"class_token": False}
    architecture = registry.parse_architecture(changes, "x", base=base.architecture)
    rng = np.random.default_rng(0)
    shapes = ModelDef(architecture).shapes()
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    save_weights(params, ModelDef(architecture), tmp_path / "x.npz", "big_vision")
    named = dataclasses.replace(base, architecture=architecture)
    source = identify(tmp_path / "x.npz", named).source
    table = params["positions"].reshape(14, 14, 96)
    for rows, columns in SIZES[14]:
        expected = scipy.ndimage.zoom(table, (rows / 14, columns / 14, 1), order=1)
        model = ModelDef(with_image_size(source.architecture, (rows * 16, columns * 16), "x"))
        found = load_weights(tmp_path / "x.npz", model, source=source)["positions"]
        name = f"big_vision, {rows} x {columns}"
        check(name, {"x": found}, {"x": expected.reshape(rows * columns, 96)})


def compare(
    name: str,
    source: Any,
    path: pathlib.Path,
    forward: Callable[[torch.Tensor], dict[str, torch.Tensor]],
) -> None:
    """Compares all blocks at other sizes, with positions resized on each call and on loading.

    Args:
        name: name of the model.
        source: architecture of the weights.
        path: weight file or folder.
        forward: images (B, 3, H, W) -> outputs of the original library.
    """
    tower = getattr(source, "image", source)
    model = ModelDef(source)
    params = load_weights(path, model)
    for rows, columns in SIZES[tower.grid[0]]:
        size = (rows * tower.patch_size, columns * tower.patch_size)
        images = random_images(1, *size, 3)
        with torch.no_grad():
            theirs = forward(torch.from_numpy(images).permute(0, 3, 1, 2))
        expected = {key: value.numpy() for key, value in theirs.items()}
        large = ModelDef(with_image_size(source, size, name))
        loaded = load_weights(path, large)
        for how, definition, values in (("called", model, params), ("loaded", large, loaded)):
            blocks = jax.jit(lambda p, x, d=definition: d.bind(p).features(x, range(DEPTH)))(
                values, images
            )
            found = {f"block_{i}": x for i, x in enumerate(blocks)}
            check(f"{name}, {rows} x {columns}, {how}", found, expected)
