"""Augmentation and preprocessing."""

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.augment import parse_augmentation
from vit_jax.errors import UserError
from vit_jax.inputs import composite, normalize, preprocess

FULL = "background|affine|color_shift(shade=0.1)|cutout(0.9)"


def picture(channels=4, size=64):
    return np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)


def test_shape_and_determinism():
    augment = parse_augmentation(FULL, size=32)
    first, again, other = (augment(picture(), np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_input_is_not_changed():
    image = picture()
    image.flags.writeable = False
    parse_augmentation(FULL, size=32)(image, np.random.default_rng(0))


def test_affine_without_movement_is_the_box_average():
    still = "affine(rotate=0, scale=(1, 1), aspect=0, shear=0, shift=0)"
    image = picture(3)
    found = parse_augmentation(still, size=32)(image, np.random.default_rng(0))
    expected = image.reshape(32, 2, 32, 2, 3).astype(np.float64).mean(axis=(1, 3))
    assert np.abs(found - expected).max() <= 0.5


def test_affine_scale_and_shift_act_as_said():
    """A white square of half the side: twice as large at scale 2, moved by up to `shift`."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:48, 16:48] = 255
    still = "rotate=0, aspect=0, shear=0"
    double = parse_augmentation(f"affine({still}, shift=0, scale=(2, 2))", size=64)
    assert (double(image, np.random.default_rng(0)) == 255).all()
    moved = parse_augmentation(f"affine({still}, shift=0.1, scale=(1, 1))", size=64)
    centres = []
    for seed in range(200):
        rows = np.nonzero(moved(image, np.random.default_rng(seed))[..., 0] > 127)[0]
        centres.append(rows.mean() - 31.5)
    assert 5.5 < max(np.abs(centres)) <= 7
    assert abs(np.mean(centres)) < 1


def test_color_shift_moments():
    """Uniform factors: the mean image stays, the spread is that of the ranges."""
    grey = np.full((8, 8, 3), 128, np.uint8)
    jitter = "color_shift(hue=0, saturation=0, contrast=0, grey=0, brightness=0.2)"
    augment = parse_augmentation(jitter, size=8)
    levels = np.asarray([augment(grey, np.random.default_rng(s))[0, 0, 0] for s in range(2000)])
    assert abs(levels.mean() - 127.5) < 2
    np.testing.assert_allclose(levels.std(), 0.2 * 255 / np.sqrt(3), rtol=0.05)


def test_grey_has_the_luma_of_rec_601():
    augment = parse_augmentation(
        "color_shift(hue=0, saturation=0, contrast=0, brightness=0, grey=1)", size=8
    )
    image = picture(3, 8)
    found = augment(image, np.random.default_rng(0)).astype(float)
    expected = image @ np.asarray([0.299, 0.587, 0.114])
    assert np.abs(found - expected[..., None]).max() <= 1


def test_hue_rotation_keeps_grey_and_turns_a_third():
    jitter = "color_shift(hue={}, saturation=0, contrast=0, brightness=0, grey=0)"
    grey = np.full((4, 4, 3), 77, np.uint8)
    augment = parse_augmentation(jitter.format(3.0), size=4)
    assert np.abs(augment(grey, np.random.default_rng(0)).astype(int) - 77).max() <= 1


def test_cutout_and_background():
    image = np.zeros((20, 20, 3), np.uint8)
    hidden = []
    for seed in range(300):
        out = parse_augmentation("cutout(0.5, (0.2, 0.4))", size=20)(
            image, np.random.default_rng(seed)
        )
        hidden.append((out != 0).any(-1).mean())
    assert 0.4 < np.mean(np.asarray(hidden) > 0) < 0.6
    assert max(hidden) <= 0.4**2 + 1e-9
    clear = np.zeros((4, 4, 4), np.uint8)
    whites = [
        (
            parse_augmentation("background(0.25)", size=4)(clear, np.random.default_rng(s)) == 255
        ).all()
        for s in range(400)
    ]
    assert 0.18 < np.mean(whites) < 0.32


def test_preprocess_modes():
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, :20] = 255
    assert preprocess(wide, size=10, resize="crop").shape == (10, 10, 3)
    crop, squash, pad = (preprocess(wide, size=10, resize=m) for m in ("crop", "squash", "pad"))
    assert (crop[:, :4] == 255).all()
    assert (crop[:, 6:] == 0).all()
    np.testing.assert_array_equal(
        squash, Image.fromarray(wide).resize((10, 10), Image.Resampling.BICUBIC)
    )
    assert (pad[:2] == 255).all()
    assert (pad[-2:] == 255).all()
    assert (pad[4:6, 6:] == 0).all()
    with pytest.raises(UserError, match=r"preprocess\.resize 'fit'; known: crop, pad, squash"):
        preprocess(wide, size=10, resize="fit")


def test_composite_equals_float_blend():
    image = picture()
    alpha = image[..., 3:].astype(np.float64) / 255
    expected = image[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(composite(image) - expected).max() <= 0.5 + 1e-9


def test_normalize():
    images = picture(3)[None]
    found = normalize(images, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    expected = (images / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("affin", "did you mean 'affine'"),
        ("affine(rotat=3)", "unexpected keyword argument 'rotat'"),
        ("affine(", "expected the form name"),
        ("affine(__import__('os'))", "expected the form name"),
        ("color_shift|", "expected the form name"),
    ],
)
def test_wrong_augmentation(text, message):
    with pytest.raises(UserError, match=message):
        parse_augmentation(text, size=8)


def test_wrong_result_shape_is_explained():
    with pytest.raises(UserError, match=r"shape \(64, 64, 4\), expected \(32, 32, 3\)"):
        parse_augmentation("cutout", size=32)(picture(), np.random.default_rng(0))
