"""Images that are not square, in every architecture."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models import registry
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.positions import resize_positions
from vit_jax.models.mae.model import MAEConfig, patchify
from vit_jax.models.resnet.model import ResNetConfig
from vit_jax.models.sizes import as_size
from vit_jax.models.spec import ModelSpec
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.weights.transformers import vit_config

VIT = ViTConfig(image_size=(12, 16), patch_size=4, width=8, depth=2, num_heads=2, mlp_dim=16)
SWIN = SwinConfig(
    image_size=(24, 40), patch_size=2, width=8, depths=(2, 2), num_heads=(2, 2), window_size=4
)
RESNET = {"depths": (1, 1, 1, 1), "width": 4}
TEXT = TextConfig(
    vocab_size=20, context_length=5, width=8, depth=1, num_heads=2, mlp_dim=16, activation="gelu"
)
CLIP_RESNET = CLIPResNetConfig(image_size=(64, 96), **RESNET, num_heads=4, embed_dim=12)
# Architecture and the shapes of features of layers 0 and -1.
CASES = {
    "vit": (VIT, [(2, 13, 8), (2, 13, 8)]),
    "vit map": (
        dataclasses.replace(VIT, class_token=False, pool="map", num_registers=1),
        [(2, 13, 8), (2, 13, 8)],
    ),
    "vit fixed_sincos": (
        dataclasses.replace(VIT, position_init="fixed_sincos", num_classes=3),
        [(2, 13, 8), (2, 13, 8)],
    ),
    "swin": (SWIN, [(2, 12, 20, 8), (2, 6, 10, 16)]),
    "resnet": (
        ResNetConfig(image_size=(64, 96), **RESNET, num_classes=3),
        [(2, 16, 24, 16), (2, 2, 3, 128)],
    ),
    "clip_resnet": (CLIP_RESNET, [(2, 16, 24, 16), (2, 2, 3, 128)]),
    "clip": (CLIPConfig(image=VIT, text=TEXT, embed_dim=6), [(2, 13, 8), (2, 13, 8)]),
    "mae": (
        MAEConfig(
            image=dataclasses.replace(VIT, position_init="fixed_sincos"),
            decoder_width=8,
            decoder_depth=1,
            decoder_num_heads=2,
            decoder_mlp_dim=16,
        ),
        [(2, 13, 8), (2, 13, 8)],
    ),
}


def random_images(size, count=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, *size, 3)), jnp.float32)


def bound(architecture):
    model = ModelDef(architecture)
    return model.bind(jax.jit(model.init)(jax.random.key(0)))


@pytest.mark.parametrize("name", CASES)
def test_shapes(name):
    """Features and embeddings at the training size, and at its transpose."""
    architecture, shapes = CASES[name]
    model = ModelDef(architecture)
    size = as_size(getattr(architecture, "image", architecture).image_size)

    def forward(params, images):
        module = model.bind(params)
        return module.features(images, (0, -1)), module.encode_image(images)

    def run(size):
        images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        features, pooled = jax.eval_shape(forward, model.shapes(), images)
        return [x.shape for x in features], pooled.shape

    features, pooled = run(size)
    assert features == shapes
    transposed, same = run(size[::-1])
    assert [np.prod(shape) for shape in transposed] == [np.prod(shape) for shape in shapes]
    assert same == pooled


@pytest.mark.parametrize("name", CASES)
def test_spec_and_json(name):
    """The inputs take the size, and plain fields are restored."""
    architecture, _ = CASES[name]
    size = as_size(getattr(architecture, "image", architecture).image_size)
    assert ModelSpec(architecture=architecture, inputs=ImageInputs()).inputs.size == size
    plain = json.loads(json.dumps(registry.describe(architecture)))
    assert registry.parse_architecture(plain, "model") == architecture


def test_vit_positions_are_resized_between_two_grids():
    """A model of (12, 16) at (16, 8) is the model of (16, 8) with the resized table."""
    small = bound(VIT)
    large_config = dataclasses.replace(VIT, image_size=(16, 8))
    model = ModelDef(large_config)
    own = ModelDef(VIT)
    params = jax.jit(own.init)(jax.random.key(0))
    assert params["positions"].shape == (1 + 3 * 4, 8)
    moved = {**params, "positions": resize_positions(params["positions"], (3, 4), (4, 2), 1)}
    assert model.shapes()["positions"].shape == moved["positions"].shape == (1 + 4 * 2, 8)
    images = random_images((16, 8))
    np.testing.assert_allclose(
        small.encode_image(images), model.bind(moved).encode_image(images), rtol=1e-5, atol=1e-5
    )


def test_rows_and_columns_are_not_confused():
    """Transposing images, patches and positions transposes the tokens and keeps the features."""
    params = jax.jit(ModelDef(VIT).init)(jax.random.key(0))
    table = params["positions"]
    swapped = {
        **params,
        "positions": jnp.concatenate(
            [table[:1], table[1:].reshape(3, 4, 8).swapaxes(0, 1).reshape(12, 8)]
        ),
        "patch_embed": {
            **params["patch_embed"],
            "kernel": params["patch_embed"]["kernel"].swapaxes(0, 1),
        },
    }
    images = random_images((12, 16))
    found = ModelDef(dataclasses.replace(VIT, image_size=(16, 12))).bind(swapped)
    np.testing.assert_allclose(
        found.encode_image(images.swapaxes(1, 2)),
        ModelDef(VIT).bind(params).encode_image(images),
        rtol=1e-4,
        atol=1e-5,
    )


def test_swin_windows_of_each_side():
    """Along a side that one window spans, the window shrinks to the map and does not shift."""
    config = dataclasses.replace(SWIN, image_size=(6, 40))
    first, second = config.stages
    assert (first.map_size, second.map_size) == ((3, 20), (2, 10))
    assert (first.table_window, second.table_window) == ((3, 4), (2, 4))
    windows = first.windows(first.map_size, shifted=True)
    assert (windows.size, windows.shift, windows.counts) == ((3, 4), (0, 2), (1, 5))
    shapes = ModelDef(config).shapes()
    table = shapes["stage0"]["blocks"]["attention"]["bias_table"]
    assert table.shape == (2, (2 * 3 - 1) * (2 * 4 - 1), 2)


def first_features(config, params, images):
    """Features after the first stage."""
    return jax.jit(lambda p, x: ModelDef(config).bind(p).features(x, (0,))[0])(params, images)


@pytest.mark.release
def test_swin_padding_of_each_side():
    """Maps of 10 x 14 and 5 x 7 in windows of 4: padded to 12 x 16 and 8 x 8, then cropped."""
    config = dataclasses.replace(SWIN, image_size=(20, 28))
    module = bound(config)
    images = random_images((20, 28))
    first, second = jax.jit(lambda x: module.features(x, (0, 1)))(images)
    assert (first.shape, second.shape) == ((2, 10, 14, 8), (2, 5, 7, 16))
    windows = config.stages[1].windows((5, 7), shifted=True)
    assert (windows.counts, windows.shift) == ((2, 2), (2, 2))
    # Equivariance: without shifts, position biases and borders, transposed images have transposed
    # features.
    square = dataclasses.replace(config, depths=(1, 1))
    transposed = dataclasses.replace(square, image_size=(28, 20))
    params = jax.jit(ModelDef(square).init)(jax.random.key(0))
    swapped = jax.tree.map(lambda x: x, params)
    swapped["patch_embed"]["kernel"] = params["patch_embed"]["kernel"].swapaxes(0, 1)
    for i in range(2):
        attention = swapped[f"stage{i}"]["blocks"]["attention"]
        table = attention["bias_table"].reshape(1, 7, 7, 2)
        attention["bias_table"] = table.swapaxes(1, 2).reshape(1, 49, 2)
    found = first_features(transposed, swapped, images.swapaxes(1, 2))
    expected = first_features(square, params, images)
    np.testing.assert_allclose(found.swapaxes(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_mae_reconstructs_every_patch():
    module = bound(CASES["mae"][0])
    noise = jnp.asarray(np.random.default_rng(0).random((2, 12)), jnp.float32)
    pixels, mask = module.reconstruct(random_images((12, 16)), noise, 0.75)
    assert pixels.shape == patchify(random_images((12, 16)), 4).shape == (2, 12, 48)
    np.testing.assert_array_equal(mask.sum(1), 9)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: dataclasses.replace(VIT, image_size=(12, 18)), r"image_size=\(12, 18\)"),
        (lambda: dataclasses.replace(VIT, image_size=0), "expected a positive int or"),
        (lambda: dataclasses.replace(SWIN, image_size=(24, 41)), r"image_size=\(24, 41\)"),
        (
            lambda: dataclasses.replace(CLIP_RESNET, image_size=(64, 100)),
            r"32 does not divide image_size=\(64, 100\)",
        ),
    ],
)
def test_sizes_that_do_not_fit(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("name", ["vit", "swin", "clip_resnet"])
def test_images_that_do_not_fit(name):
    model = ModelDef(CASES[name][0])
    images = jax.ShapeDtypeStruct((1, 64, 65, 3), jnp.float32)
    with pytest.raises(UserError, match="does not divide images of 64 x 65 px"):
        jax.eval_shape(lambda p, x: model.bind(p).encode_image(x), model.shapes(), images)


def test_pixels_that_fill_no_patch_are_left_out_where_the_model_says_so():
    config = dataclasses.replace(VIT, image_size=(14, 19), drop_remainder=True)
    assert config.grid == (3, 4)
    module = ModelDef(config).bind(ModelDef(config).init(jax.random.key(0)))
    images = random_images((14, 19))
    np.testing.assert_array_equal(
        module.encode_image(images), module.encode_image(images[:, :12, :16])
    )
    folder = {"image_size": 384, "patch_size": 14, "hidden_size": 8, "num_hidden_layers": 1}
    folder |= {"num_attention_heads": 2, "intermediate_size": 8, "layer_norm_eps": 1e-6}
    assert vit_config({**folder, "hidden_act": "gelu"}).grid == (27, 27)


def test_clip_resnet_sizes_are_multiples_of_32():
    config = CLIPResNetConfig(image_size=64, **RESNET, num_heads=4, embed_dim=12)
    model = ModelDef(config)

    def output_shape(model, shape):
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.eval_shape(lambda p, x: model.bind(p)(x), model.shapes(), images).shape

    assert output_shape(model, (1, 64, 96, 3)) == (1, 12)
    with pytest.raises(UserError, match="32 does not divide images of 64 x 40 px"):
        output_shape(model, (1, 64, 40, 3))
    for changes, message in (
        ({"image_size": 100}, r"32 does not divide image_size=\(100, 100\)"),
        ({"width": 3}, "width=3: expected an even number"),
        ({"num_heads": 3}, "num_heads=3 does not divide the last stage's 128 channels"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(config, **changes)
