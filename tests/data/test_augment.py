"""Parsing of augmentations, and the transforms for small drawings."""

import dataclasses
import pickle
import sys
import types

import numpy as np
import pytest

from vit_jax.data.augment import TRANSFORMS, parse_augmentation
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs, composite

# Transforms that do not need boxes.
OF_IMAGES = [name for name in TRANSFORMS.table if "__call__" in vars(TRANSFORMS.resolve(name))]
FULL = "background|affine|color_shift(shade=0.1)|cutout(0.9)"


def noise(channels=4, height=64, width=64):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def augment(text, image, seed=0, size=64, **inputs):
    size = (size, size) if isinstance(size, int) else size
    augmentation = parse_augmentation(text, ImageInputs(size=size, **inputs))
    return augmentation(image, np.random.default_rng(seed))


# --- parsing --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Solarize:
    """A transform from outside the package."""

    threshold: float = 0.5
    levels: tuple[int, int] = (0, 255)

    def __call__(self, image, rng):
        return np.where(image < self.threshold * 255, image, 255 - image)


@dataclasses.dataclass(frozen=True)
class White:
    """A transform that reads the model's preprocessing."""

    inputs: ImageInputs = dataclasses.field(kw_only=True)

    def __call__(self, image, rng):
        return np.full((*self.inputs.size, 3), 255, np.uint8)


@pytest.fixture(autouse=True)
def my_project(monkeypatch):
    module = types.ModuleType("my_project.transforms")
    module.Solarize, module.White, module.function = Solarize, White, lambda image, rng: image
    monkeypatch.setitem(sys.modules, "my_project", types.ModuleType("my_project"))
    monkeypatch.setitem(sys.modules, "my_project.transforms", module)


@pytest.mark.parametrize(
    "inputs",
    [
        {"resize": "crop", "crop_fraction": 0.8},
        {"resize": "squash", "interpolation": "bilinear"},
        {"resize": "pad"},
    ],
    ids=lambda inputs: inputs["resize"],
)
@pytest.mark.parametrize("text", ["", " ", "resize"])
def test_no_augmentation_is_the_models_preprocessing(text, inputs):
    image = noise(4, 50, 80)
    expected = ImageInputs(size=(24, 32), **inputs)(image)
    np.testing.assert_array_equal(augment(text, image, size=(24, 32), **inputs), expected)


def test_resize_with_a_mode():
    image = noise(3, 50, 80)
    expected = ImageInputs(size=(24, 32), resize="squash")(image)
    np.testing.assert_array_equal(augment("resize('squash')", image, size=(24, 32)), expected)


@pytest.mark.parametrize(
    "text",
    [
        "my_project.transforms:Solarize(0.25)|flip(0)",
        "flip(0) | my_project.transforms:Solarize(threshold=0.25)",
    ],
)
def test_transform_from_outside_the_package(text):
    image = noise(3)
    np.testing.assert_array_equal(augment(text, image), Solarize(0.25)(image, None))


def test_transform_from_outside_reads_the_models_preprocessing():
    assert (augment("my_project.transforms:White", noise(3), size=(8, 16)) == 255).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("affin", "unknown augmentation 'affin'; did you mean 'affine'"),
        (
            "affine(rotat=3)",
            "unknown argument 'rotat'; did you mean 'rotate'.*arguments of affine: rotate, scale, "
            "aspect, shear, shift$",
        ),
        ("flip(1, 2)", "2 arguments without a name; arguments of flip: probability"),
        ("flip(0.5, probability=1)", "probability is given twice"),
        ("flip('often')", "flip.probability='often': expected float"),
        ("resize(inputs=3)", "unknown argument 'inputs'"),
        ("resize('stretch')", "unknown mode of resize, 'stretch'"),
        ("affine(", "expected the form name"),
        ("affine(__import__('os'))", "expected the form name"),
        ("color_shift|", "expected the form name"),
        ("my_project.transforms:Solarise", "unknown name in my_project.transforms 'Solarise'; did"),
        ("my_project.transforms:Solarize(limit=3)", "arguments of .*: threshold, levels"),
        ("my_project.transforms:function", "expected a dataclass"),
        ("no_project.transforms:Solarize", "cannot be imported"),
    ],
)
def test_wrong_text(text, message):
    with pytest.raises(UserError, match=message):
        augment(text, noise(3))


def test_wrong_shape_of_the_result_is_explained():
    with pytest.raises(UserError, match=r"shape \(64, 64, 3\), expected \(32, 32, 3\)"):
        augment("cutout", noise(), size=32)


def test_every_transform_of_the_registry_accepts_no_arguments():
    image = noise(3, 48, 48)
    for name in OF_IMAGES:
        assert augment(name, image, size=48).shape == (48, 48, 3), name


# --- all transforms -------------------------------------------------------------------------------


def test_shape_and_determinism():
    first, again, other = (augment(FULL, noise(), seed, 32) for seed in (1, 1, 2))
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("text", [FULL, "background|random_resized_crop|flip|random_erasing(1)"])
@pytest.mark.parametrize("size", [(24, 40), (40, 24)], ids=str)
def test_sizes_that_are_not_square(text, size):
    assert augment(text, noise(4, 50, 70), size=size).shape == (*size, 3)


def test_pickled_augmentation_is_the_same():
    augmentation = parse_augmentation(FULL, ImageInputs(size=(32, 32)))
    copy = pickle.loads(pickle.dumps(augmentation))
    results = [each(noise(), np.random.default_rng(3)) for each in (augmentation, copy)]
    np.testing.assert_array_equal(*results)


def test_input_is_not_changed():
    image = noise()
    image.flags.writeable = False
    augment(FULL, image, size=32)


# --- alpha ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OF_IMAGES if name != "background"])
@pytest.mark.parametrize("text", ["{}", "{}|resize", "flip|{}|resize"])
def test_without_background_every_transform_sees_alpha_on_white(name, text):
    image, text = noise(4, 48, 48), text.format(name)
    for seed in range(3):
        found = augment(text, image, seed, 48)
        np.testing.assert_array_equal(found, augment(text, composite(image), seed, 48))


def test_background_may_follow_transforms_that_keep_alpha():
    clear = np.zeros((48, 48, 4), np.uint8)
    for text in ("flip|background(0)", "affine|flip|background(0)", "background(0)|affine"):
        colours = {tuple(augment(text, clear, seed, 48)[24, 24]) for seed in range(3)}
        assert len(colours) == 3, text


@pytest.mark.parametrize("name", ["random_resized_crop", "color_shift", "resize", "cutout(0.5)"])
def test_background_after_a_transform_without_alpha_is_refused(name):
    with pytest.raises(UserError, match=r"'background' comes after .*: put 'background' first"):
        parse_augmentation(f"flip|{name}|background", ImageInputs(size=(8, 8)))


@dataclasses.dataclass(frozen=True)
class Black:
    """A transform from outside the package that composites alpha itself."""

    removes_alpha = True

    def __call__(self, image, rng):
        return composite(image, 0)


def test_transform_from_outside_may_remove_alpha():
    sys.modules["my_project.transforms"].Black = Black
    clear = np.full((8, 8, 4), (9, 9, 9, 0), np.uint8)
    assert (augment("my_project.transforms:Black|affine", clear, size=8) == 0).all()


# --- affine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (16, 32)], ids=str)
def test_affine_without_movement_is_the_mean_of_boxes(size):
    still = "affine(rotate=0, scale=(1, 1), aspect=0, shear=0, shift=0)"
    image = noise(3, 2 * size[0], 2 * size[1])
    boxes = image.reshape(size[0], 2, size[1], 2, 3).astype(np.float64)
    assert np.abs(augment(still, image, size=size) - boxes.mean(axis=(1, 3))).max() <= 0.5


def test_affine_scale_and_shift():
    """A white square of half the side: twice as large at scale 2, moved by up to `shift`."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:48, 16:48] = 255
    still = "rotate=0, aspect=0, shear=0"
    assert (augment(f"affine({still}, shift=0, scale=(2, 2))", image) == 255).all()
    centres = []
    for seed in range(200):
        moved = augment(f"affine({still}, shift=0.1, scale=(1, 1))", image, seed)
        centres.append(np.nonzero(moved[..., 0] > 127)[0].mean() - 31.5)
    assert 5.5 < max(np.abs(centres)) <= 7
    assert abs(np.mean(centres)) < 1


# --- colours and erasing --------------------------------------------------------------------------


def test_color_shift_moments():
    """Brightness is uniform: the mean level stays, the deviation is that of the range."""
    grey = np.full((8, 8, 3), 128, np.uint8)
    text = "color_shift(hue=0, saturation=0, contrast=0, grey=0, brightness=0.2)"
    levels = np.asarray([augment(text, grey, seed, 8)[0, 0, 0] for seed in range(2000)])
    assert abs(levels.mean() - 127.5) < 2
    np.testing.assert_allclose(levels.std(), 0.2 * 255 / np.sqrt(3), rtol=0.05)


def test_grey_has_the_luma_of_rec_601():
    image = noise(3, 8, 8)
    text = "color_shift(hue=0, saturation=0, contrast=0, brightness=0, grey=1)"
    found = augment(text, image, size=8).astype(float)
    expected = image @ np.asarray([0.299, 0.587, 0.114])
    assert np.abs(found - expected[..., None]).max() <= 1


def test_rotation_of_hue_keeps_grey():
    grey = np.full((4, 4, 3), 77, np.uint8)
    text = "color_shift(hue=3.0, saturation=0, contrast=0, brightness=0, grey=0)"
    assert np.abs(augment(text, grey, size=4).astype(int) - 77).max() <= 1


def test_cutout_probability_and_area():
    image = np.zeros((20, 20, 3), np.uint8)
    text = "cutout(0.5, (0.2, 0.4))"
    hidden = [(augment(text, image, seed, 20) != 0).any(-1).mean() for seed in range(300)]
    assert 0.4 < np.mean(np.asarray(hidden) > 0) < 0.6
    assert max(hidden) <= 0.4**2 + 1e-9


def test_background_is_white_with_its_probability():
    clear = np.zeros((4, 4, 4), np.uint8)
    whites = [(augment("background(0.25)", clear, seed, 4) == 255).all() for seed in range(400)]
    assert 0.18 < np.mean(whites) < 0.32


def test_random_erasing_uses_the_models_normalisation():
    """Noise with the mean and deviation of the preprocessing, (0.2, 0.5, 0.8) and 0.05."""
    image = np.zeros((64, 64, 3), np.uint8)
    changed = {"mean": (0.2, 0.5, 0.8), "std": (0.05, 0.05, 0.05)}
    images = np.stack(
        [augment("random_erasing(1.0)", image, seed, **changed) for seed in range(50)]
    )
    pixels = images[(images != 0).any(-1)] / 255
    np.testing.assert_allclose(pixels.mean(0), (0.2, 0.5, 0.8), atol=0.01)
    np.testing.assert_allclose(pixels.std(0), 0.05, atol=0.01)
