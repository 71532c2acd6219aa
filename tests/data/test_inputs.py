"""Preprocessing against torchvision's and timm's rules, written down again with Pillow."""

import math

import numpy as np
import pytest
from PIL import Image

from tests.weights.reference import DATA
from vit_jax import inputs as inputs_lib
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs, composite

SHAPES = [(1, 1), (1, 90), (90, 1), (37, 64), (64, 37), (60, 60), (233, 17), (41, 43)]
SIZES = [(32, 32), (24, 40), (40, 24), (16, 17), (48, 12), (9, 60)]

DETECTORS = {
    "corner": {"resize": "corner", "interpolation": "bilinear"},
    "squash": {"resize": "squash"},
}


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def resample(image, height, width, method="BICUBIC"):
    if image.shape[:2] == (height, width):
        return image
    pil = Image.fromarray(image)
    return np.asarray(pil.resize((width, height), Image.Resampling[method]))


def center_crop(image, height, width):
    """torchvision.transforms.functional.center_crop."""
    top = round((image.shape[0] - height) / 2.0)
    left = round((image.shape[1] - width) / 2.0)
    return image[top : top + height, left : left + width]


def torchvision_resize(image, edge):
    """torchvision.transforms.Resize(edge): `_compute_resized_output_size`."""
    height, width = image.shape[:2]
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = edge, int(edge * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    return resample(image, new_height, new_width)


def timm_resize_keep_ratio(image, height, width):
    """timm.data.transforms.ResizeKeepRatio((height, width), longest=0)."""
    ratio = min(image.shape[0] / height, image.shape[1] / width)
    return resample(image, *(round(side / ratio) for side in image.shape[:2]))


def timm_eval(image, size, crop_fraction):
    """timm.data.transforms_factory.transforms_imagenet_eval with crop_mode="center"."""
    scaled = tuple(math.floor(side / crop_fraction) for side in size)
    if scaled[0] == scaled[1]:
        image = torchvision_resize(image, scaled[0])
    else:
        image = timm_resize_keep_ratio(image, *scaled)
    return center_crop(image, *size)


@pytest.mark.parametrize("crop_fraction", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crop_equals_timm_and_torchvision(size, crop_fraction):
    inputs = ImageInputs(size=size, resize="crop", crop_fraction=crop_fraction)
    for shape in SHAPES:
        image = noise(*shape)
        found = inputs(image)
        assert found.shape == (*size, 3)
        np.testing.assert_array_equal(found, timm_eval(image, size, crop_fraction))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_squash_ignores_the_aspect_ratio(size):
    for shape in SHAPES:
        found = ImageInputs(size=size, resize="squash", interpolation="bilinear")(noise(*shape))
        np.testing.assert_array_equal(found, resample(noise(*shape), *size, "BILINEAR"))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pad_keeps_the_whole_image_on_white(size):
    for shape in SHAPES:
        found = ImageInputs(size=size, resize="pad")(np.zeros((*shape, 3), np.uint8))
        assert found.shape == (*size, 3)
        rows, columns = np.nonzero(found[..., 0] == 0)
        content = np.ptp(rows) + 1, np.ptp(columns) + 1
        scale = min(size[0] / shape[0], size[1] / shape[1])
        for side, whole, limit in zip(content, shape, size, strict=True):
            assert abs(side - max(1, whole * scale)) <= 0.5
            assert side <= limit
        assert content[0] == size[0] or content[1] == size[1]
        margins = rows.min(), size[0] - 1 - rows.max(), columns.min(), size[1] - 1 - columns.max()
        assert 0 <= margins[1] - margins[0] <= 1
        assert 0 <= margins[3] - margins[2] <= 1


def test_pad_rounds_the_shorter_side_to_even_at_a_half():
    """4 x 2 px scaled to a height of 25 px has a width of 12.5 px, which rounds to 12."""
    found = ImageInputs(size=(25, 25), resize="pad")(np.zeros((4, 2, 3), np.uint8))
    assert (found[:, :, 0] == 0).any(0).sum() == 12


@pytest.mark.parametrize("shape", [(1, 20_000), (60_000, 1), (2, 5_000)], ids=str)
def test_long_images_are_cropped_before_they_are_enlarged(shape, monkeypatch):
    """The centre equals that of a shorter image around it; the whole would have 1e9 pixels."""
    short, long = min(shape), max(shape)
    strip = noise(short, long)
    middle = strip[:, long // 2 - 10 : long // 2 + 10]
    expected = timm_eval(middle, (224, 224), 1.0)
    turn = shape[0] > shape[1]
    resize, pixels = Image.Image.resize, []
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, size, *args: pixels.append(math.prod(size)) or resize(self, size, *args),
    )
    found = ImageInputs(size=(224, 224))(strip.transpose(1, 0, 2) if turn else strip)
    assert 0 < max(pixels) <= 224 * 224
    found = found.transpose(1, 0, 2) if turn else found
    # Passes of the two axes are rounded in turn, in an order that depends on the image.
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("inputs", [{}, {"interpolation": "bilinear", "crop_fraction": 0.875}])
def test_parts_of_enlarged_images_equal_the_whole(monkeypatch, inputs):
    for shape, size in (((9, 80), (24, 24)), ((70, 8), (32, 24)), ((5, 5), (20, 30))):
        image = noise(*shape)
        expected = ImageInputs(size=size, **inputs)(image)
        with monkeypatch.context() as patch:
            patch.setattr(inputs_lib, "_MAX_ENLARGED", 0)
            patch.setattr(inputs_lib, "_MAX_ENLARGED_SIZES", 0)
            found = ImageInputs(size=size, **inputs)(image)
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert (found == expected).mean() > 0.98


def test_squash_with_a_tiny_crop_fraction_is_cropped_first():
    inputs = ImageInputs(size=(64, 64), resize="squash", crop_fraction=1e-4)
    assert (inputs(np.full((5, 5, 3), 7, np.uint8)) == 7).all()


def test_an_image_of_the_right_size_is_unchanged():
    for resize in ("crop", "squash", "pad"):
        image = noise(24, 40)
        np.testing.assert_array_equal(ImageInputs(size=(24, 40), resize=resize)(image), image)


def test_inputs_of_detectors_equal_transformers():
    """Within the rounding to 8 bits, which Pillow does after each of two passes."""
    fixture = np.load(DATA / "detection_inputs.npz")
    shapes = [name.removeprefix("image_") for name in fixture if name.startswith("image_")]
    assert len(shapes) == 5
    for shape in shapes:
        image, corner, squash = (fixture[f"{kind}_{shape}"] for kind in ("image", *DETECTORS))
        found = [ImageInputs(size=(24, 24), **fields)(image) for fields in DETECTORS.values()]
        assert np.abs(found[0] - corner).max() <= 0.501
        assert np.abs(found[1] - squash).max() <= 1.001


def test_inputs_of_grounding_dino_equal_transformers():
    """Image processors without padding; the rest of the square has the mean colour."""
    fixture = np.load(DATA / "detection_inputs.npz")
    inputs = ImageInputs(size=(40, 40), resize="fit", interpolation="bilinear", shortest_edge=24,
                         mean=(0.2, 0.4, 0.6))  # fmt: skip
    for name in (name for name in fixture if name.startswith("image_")):
        image, expected = fixture[name], fixture[name.replace("image_", "fit_")]
        rows, columns = inputs.scaled_size(*image.shape[:2])
        assert (rows, columns, 3) == expected.shape
        found = inputs(image)
        assert np.abs(found[:rows, :columns] - expected).max() <= 1.001
        assert (found[rows:] == (51, 102, 153)).all()
        assert (found[:, columns:] == (51, 102, 153)).all()
    large = ImageInputs(size=(1333, 1333), resize="fit", shortest_edge=800)
    # transformers.image_transforms.get_size_with_aspect_ratio
    assert large.scaled_size(480, 640) == (800, 1066)
    assert large.scaled_size(640, 480) == (1066, 800)
    assert large.scaled_size(300, 1000) == (400, 1333)
    assert large.extent(300, 1000) == (300, 1000)
    with pytest.raises(UserError, match=r"expected at least \(800, 1066\), the scaled size"):
        ImageInputs(size=(600, 1333), resize="fit", shortest_edge=800)(np.zeros((48, 64, 3), "u1"))
    with pytest.raises(UserError, match=r"shortest_edge above 0 with inputs.resize='fit'"):
        ImageInputs(resize="fit")


def test_inputs_of_sam_equal_transformers():
    """Image processors without padding."""
    fixture = np.load(DATA / "detection_inputs.npz")
    inputs = ImageInputs(size=(40, 40), resize="longest", interpolation="bilinear")
    for name in (name for name in fixture if name.startswith("image_")):
        image, expected = fixture[name], fixture[name.replace("image_", "longest_")]
        rows, columns = inputs.scaled_size(*image.shape[:2])
        assert (rows, columns, 3) == expected.shape
        assert np.abs(inputs(image)[:rows, :columns] - expected).max() <= 1.001
    published = ImageInputs(size=(1024, 1024), resize="longest")
    # SamImageProcessor._get_preprocess_shape
    assert published.scaled_size(427, 640) == (683, 1024)
    assert published.scaled_size(1999, 333) == (1024, 171)
    assert published.extent(427, 640) == (427, 640)


def test_extent_is_the_area_of_the_input():
    """A bright pixel is found at its place in the image divided by the extent."""
    image = np.zeros((30, 50, 3), np.uint8)
    image[20:23, 40:43] = 255
    for fields in DETECTORS.values():
        inputs = ImageInputs(size=(100, 100), **fields)
        rows, columns = np.nonzero(inputs(image)[..., 0] > 127)
        height, width = inputs.extent(30, 50)
        np.testing.assert_allclose((rows.mean() + 0.5) / 100, 21.5 / height, atol=5e-3)
        np.testing.assert_allclose((columns.mean() + 0.5) / 100, 41.5 / width, atol=5e-3)
    assert ImageInputs(resize="squash").extent(30, 50) == (30, 50)
    assert ImageInputs(resize="corner", interpolation="bilinear").extent(30, 50) == (50, 50)
    for fields in (
        {"resize": "crop"},
        {"resize": "pad"},
        {"resize": "squash", "crop_fraction": 0.9},
    ):
        with pytest.raises(
            UserError, match=r"with crop_fraction=1, 'corner', 'fit' or 'longest'; found"
        ):
            ImageInputs(**fields).extent(30, 50)


def test_pack_and_normalize():
    """Packed and unpacked images give the same floating-point input."""
    inputs = ImageInputs(size=(4, 6), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = np.stack([noise(4, 6, seed=seed) for seed in range(3)])
    packed = np.stack([inputs.pack(image) for image in images])
    assert packed.shape == (3, inputs.packed_size)
    expected = (images / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    for pixels in (packed, images):
        found = np.asarray(inputs.normalize(pixels))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_renormalize_converts_between_models():
    student = ImageInputs(size=(4, 4), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    teacher = ImageInputs(size=(4, 4), mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    images = noise(4, 4)[None]
    found = teacher.renormalize(student.normalize(images), student)
    np.testing.assert_allclose(found, teacher.normalize(images), rtol=1e-4, atol=1e-5)


def test_composite_equals_a_floating_point_blend():
    image = noise(64, 64, 4)
    alpha = image[..., 3:].astype(np.float64) / 255
    expected = image[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(composite(image) - expected).max() <= 0.5 + 1e-9
    np.testing.assert_array_equal(composite(noise(5, 5)), noise(5, 5))


def test_transparent_pixels_become_white():
    found = ImageInputs(size=(8, 8))(np.zeros((20, 10, 4), np.uint8))
    assert (found == 255).all()


def test_errors():
    with pytest.raises(UserError, match=r"inputs.resize, 'stretch'"):
        ImageInputs(resize="stretch")
    with pytest.raises(UserError, match=r"interpolation, 'bicubc'; did you mean 'bicubic'"):
        ImageInputs(interpolation="bicubc")
    with pytest.raises(UserError, match=r"needs interpolation='bilinear' .* found 'bicubic' and 1"):
        ImageInputs(resize="corner")
    with pytest.raises(UserError, match=r"crop_fraction=1.5: expected a number above 0, at most 1"):
        ImageInputs(crop_fraction=1.5)
    with pytest.raises(UserError, match=r"size=\(0, 0\): expected a height and a width above 0"):
        ImageInputs()(noise(4, 4))
