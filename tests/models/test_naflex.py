"""Images that keep their aspect ratio: grids, packing, positions, and masks of padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.config import default_config, model_spec
from vit_jax.data.augment import parse_augmentation
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.inputs.patches import PatchSequence, fitting_grid, size_of_budget
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.grids import ANTIALIASED, DEFAULT_RULE, resize_grid, resize_to_grids
from vit_jax.models.ops.attention import self_attention
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.attention_maps import attention_maps
from vit_jax.models.vit.model import ViTConfig

TINY = ViTConfig(
    image_size=16,
    patch_size=4,
    width=16,
    depth=2,
    num_heads=2,
    mlp_dim=24,
    class_token=False,
    pool="map",
    position_grid=(3, 3),
    position_resize="bilinear_antialias",
)
INPUTS = ImageInputs(size=(16, 16), patch_size=4, resize="naflex", interpolation="bilinear")


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def random_sequence(grids, length):
    values = np.random.default_rng(1).normal(size=(len(grids), length, 48))
    return PatchSequence(jnp.asarray(values, jnp.float32), jnp.asarray(grids))


def test_grids_are_those_of_transformers():
    """Computed with `get_image_size_for_max_num_patches` of transformers 5.24."""
    expected = {
        (480, 640): (14, 18),
        (640, 480): (18, 14),
        (224, 224): (16, 16),
        (1, 1): (7, 7),  # the scale is at most 100
        (1, 10_000): (1, 256),
        (3000, 17): (177, 1),
        (375, 500): (14, 18),
    }
    for shape, grid in expected.items():
        assert fitting_grid(*shape, patch_size=16, max_patches=256) == grid
    assert [size_of_budget(n, 16) for n in (256, 128, 7)] == [(256, 256), (128, 256), (16, 112)]


def test_normalisation_of_a_teacher():
    packed = INPUTS.pack(INPUTS(noise(13, 40)))[None]
    teacher = dataclasses.replace(INPUTS, mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))

    @jax.jit
    def both(packed):
        return teacher.renormalize(INPUTS.normalize(packed), INPUTS), teacher.normalize(packed)

    found, expected = both(packed)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    teacher.check_renormalized(INPUTS)
    for other in ({"resize": "squash"}, {"patch_size": 2}):
        with pytest.raises(UserError, match=r"patches of one size for both, or for none"):
            dataclasses.replace(INPUTS, **other).check_renormalized(INPUTS)


@pytest.mark.parametrize("shape", [(13, 40), (33, 9), (20, 20), (1, 300)])
def test_image_survives_packing(shape):
    pixels = INPUTS(noise(*shape))
    packed = INPUTS.pack(pixels)
    assert packed.shape == (INPUTS.packed_size,)
    np.testing.assert_array_equal(INPUTS.unpack(packed), pixels)
    np.testing.assert_array_equal(INPUTS(pixels), pixels)  # scaled once
    sequence = INPUTS.normalize(packed[None])
    rows, columns = np.asarray(sequence.grid)[0]
    assert (rows * 4, columns * 4, 3) == pixels.shape
    last = np.asarray(sequence.values)[0, rows * columns - 1].reshape(4, 4, 3)
    np.testing.assert_allclose(last, pixels[-4:, -4:] / 127.5 - 1, atol=1e-6)
    assert np.asarray(sequence.mask).sum() == rows * columns


RULES = [pytest.param(r, marks=[pytest.mark.release] * (r == DEFAULT_RULE)) for r in ANTIALIASED]


@pytest.mark.parametrize("rule", RULES)
def test_positions_of_each_image(rule):
    """Those of a batch are those that each grid has by itself."""
    table = jax.random.normal(jax.random.key(0), (5, 4, 3))
    grids = [(2, 7), (12, 1), (5, 4)]

    @jax.jit
    def compute(table, grids_of_batch):
        batch = resize_to_grids(table, grids_of_batch, 20, rule)
        return batch, [resize_grid(table, grid, rule).reshape(-1, 3) for grid in grids]

    found, expected = compute(table, jnp.asarray(grids))
    assert np.isfinite(found).all()
    for values, alone in zip(np.asarray(found), expected, strict=True):
        np.testing.assert_allclose(values[: len(alone)], alone, atol=2e-6)


@pytest.fixture(scope="module")
def tower():
    model = ModelDef(TINY)
    return model, jax.jit(model.init)(jax.random.key(0))


def test_padding_changes_nothing(tower):
    model, params = tower

    @jax.jit
    def compute(values, grid):
        """Pooled features, and the gradient of a function of them."""

        def total(values):
            pooled = model.bind(params).encode_image(PatchSequence(values, grid))
            return jnp.sum(jnp.sin(pooled)), pooled

        gradient, pooled = jax.grad(total, has_aux=True)(values)
        return pooled, gradient

    batch = random_sequence([(2, 7), (8, 2), (4, 4)], 16)
    pooled, gradient = map(np.asarray, compute(batch.values, batch.grid))
    alone, _ = compute(batch.values[:1, :14], batch.grid[:1])
    np.testing.assert_allclose(pooled[:1], alone, rtol=1e-5, atol=1e-6)
    mask = np.asarray(batch.mask)
    other, _ = compute(jnp.where(mask[..., None], batch.values, 9.0), batch.grid)
    np.testing.assert_array_equal(other, pooled)
    assert (gradient[~mask] == 0).all()
    assert (np.abs(gradient[mask]).max(axis=-1) > 0).all()


def test_one_aspect_ratio_equals_the_fixed_model(tower):
    model, params = tower
    encode = jax.jit(lambda images: model.bind(params).encode_image(images))
    images = np.stack([noise(16, 16), noise(16, 16)[::-1]])
    packed = np.stack([INPUTS.pack(image) for image in images])
    expected = encode(INPUTS.normalize(images))
    found = encode(INPUTS.normalize(packed))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.release
def test_no_attention_to_padding(tower):
    model, params = tower
    maps = jax.jit(lambda x: attention_maps(model.bind(params), x))(random_sequence([(2, 7)], 16))
    assert np.asarray(maps)[..., 14:].max() == 0


@pytest.mark.release
def test_tokens_before_the_patches_and_patch_dropout():
    """A classifier with class token and registers; padding is dropped before any patch."""
    config = dataclasses.replace(
        TINY,
        pool="class_mean",
        class_token=True,
        num_registers=2,
        num_classes=3,
        patch_dropout=0.25,
    )
    model = ModelDef(config)
    params = jax.jit(model.init)(jax.random.key(0))
    classify = jax.jit(lambda x, rng=None: model.bind(params)(x, rng=rng))
    # A quarter of 16 patches is dropped: exactly the padding.
    batch = random_sequence([(2, 6)], 16)
    dropped = classify(batch, rng=jax.random.key(2))
    np.testing.assert_allclose(dropped, classify(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.release
@pytest.mark.parametrize("implementation", ["split", "packed"])
def test_mask_of_self_attention(implementation):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    x, qkv, out = draw(2, 8, 16), (draw(16, 3, 2, 8), draw(3, 2, 8)), (draw(2, 8, 16), draw(16))
    mask = jnp.arange(8) < jnp.asarray([[5], [8]])
    found, expected = (
        self_attention(x, qkv, out, mask=mask, implementation=name)
        for name in (implementation, "reference")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_budget_is_that_of_the_image_size():
    config = default_config("siglip2_b16_naflex")
    config.model.image.image_size = 384
    spec = model_spec(config)
    assert (spec.inputs.max_patches, spec.inputs.patch_size) == (576, 16)
    assert spec.architecture.image.table_grid == (16, 16)
    config.model.inputs.patch_size = 8
    with pytest.raises(UserError, match=r"set config.model.patch_size instead"):
        model_spec(config)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (dataclasses.replace(TINY, position_resize="bicubic"), "position_resize out of"),
        (dataclasses.replace(TINY, position_init="fixed_sincos"), "found 'fixed_sincos'"),
        (registry.model_spec("cappa_emoji").architecture, "found CapPaConfig with ViTConfig"),
    ],
)
def test_models_that_do_not_mask_padding(architecture, message):
    with pytest.raises(UserError, match=message):
        ModelSpec(architecture=architecture, inputs=ImageInputs(resize="naflex"))


def test_augmentation_keeps_the_aspect_ratio():
    rng = np.random.default_rng(0)
    image = noise(30, 90)
    flipped = parse_augmentation("flip(1.0)", INPUTS)(image, rng)
    np.testing.assert_array_equal(flipped, INPUTS(image[:, ::-1]))
    narrow = f"random_resized_crop(scale=({1 / 6}, {1 / 6}), ratio=(0.5, 0.5))"  # 30 x 15 px
    crop = parse_augmentation(narrow, INPUTS)(image, rng)
    assert crop.shape == (20, 12, 3)  # 5 x 3 patches
    assert parse_augmentation("affine", INPUTS)(image, rng).shape == INPUTS(image).shape
    with pytest.raises(UserError, match=r"set config.model.inputs.resize instead"):
        parse_augmentation("resize('naflex')", dataclasses.replace(INPUTS, resize="squash"))
