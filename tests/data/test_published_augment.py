"""Augmentations of published recipes: their distributions, and crops of encoded images."""

import io
import math

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from vit_jax.data.augment import parse_augmentation
from vit_jax.data.augment.geometry import RandomResizedCrop
from vit_jax.data.augment.operations import OPERATIONS, rotate_hue
from vit_jax.data.augment.policies import RandAugment
from vit_jax.data.examples import example_transform
from vit_jax.data.images import EncodedImage
from vit_jax.data.jpeg import read_header
from vit_jax.data.loader import Loader
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

PHOTO = Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 500, 375))
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
RECIPE = "random_resized_crop|flip|randaugment(2, 9, mstd=0.5, inc=True)|random_erasing(0.25)"


def model_inputs(size):
    size = (size, size) if isinstance(size, int) else size
    return ImageInputs(size=size, **IMAGENET)


def encoded(image=PHOTO, format="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return EncodedImage(stream.getvalue(), f"image.{format.lower()}")


def augmented(text, image, seed=0, size=64):
    return parse_augmentation(text, model_inputs(size))(image, np.random.default_rng(seed))


def test_crop_distribution():
    """Area and log aspect are uniform where every draw fits; no box leaves the image."""
    crop = RandomResizedCrop(scale=(0.1, 0.5), ratio=(0.5, 2.0), inputs=model_inputs(64))
    rng = np.random.default_rng(0)
    boxes = np.asarray([crop.box(1000, 1000, rng) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert max(np.max(top + height), np.max(left + width)) <= 1000
    area, aspect = height * width / 1e6, np.log(width / height)
    assert abs(area.mean() - 0.3) < 5 * 0.4 / math.sqrt(12 * 4000)
    np.testing.assert_allclose(area.std(), 0.4 / math.sqrt(12), rtol=0.05)
    assert abs(aspect.mean()) < 5 * math.log(4) / math.sqrt(12 * 4000)
    np.testing.assert_allclose(aspect.std(), math.log(4) / math.sqrt(12), rtol=0.05)
    assert abs((top / np.maximum(1000 - height, 1)).mean() - 0.5) < 0.03


def test_crop_of_a_narrow_image_is_its_centre():
    crop = RandomResizedCrop(scale=(0.9, 1.0), inputs=model_inputs(64))
    assert crop.box(10, 100, np.random.default_rng(0)) == (0, 43, 10, 13)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)], ids=str)
def test_crops_of_encoded_images_agree_with_pillow(scale, size):
    """Reduced decoding and OpenCV against Pillow's antialiased bicubic of the whole image."""
    file, pixels = encoded(quality=95), np.asarray(PHOTO)
    crop = RandomResizedCrop(scale=scale, inputs=model_inputs(size))
    pixel, level, spread = [], [], []
    for seed in range(20):
        found = augmented(f"random_resized_crop(scale={scale})", file, seed, size).astype(float)
        top, left, height, width = crop.box(*pixels.shape[:2], np.random.default_rng(seed))
        box = (left, top, left + width, top + height)
        expected = np.asarray(PHOTO.resize(size[::-1], Image.Resampling.BICUBIC, box=box), float)
        pixel.append(np.abs(found - expected).mean())
        level.append((found - expected).mean())
        spread.append(found.std() / expected.std())
    # Crops that are moved by one pixel of the result differ by 10.
    assert np.mean(pixel) < 6
    assert np.abs(level).max() < 3
    assert abs(np.mean(level)) < 0.7
    assert abs(np.mean(spread) - 1) < 0.02


def test_jpeg_is_read_at_reduced_scale_only_where_the_crop_allows():
    file = encoded()
    assert file.shape == (375, 500)
    for scale, shape in ((1.0, (375, 500, 3)), (0.51, (375, 500, 3)), (0.5, (188, 250, 3))):
        assert file.decode_reduced(scale, 375)[0].shape == shape
    assert file.decode_reduced(0.01, 375)[0].shape == (47, 63, 3)
    assert [file.decode_reduced(s, 375)[1] for s in (1.0, 0.51, 0.5, 0.01)] == [1, 1, 2, 8]


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.25, 0.125])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"restart_marker_rows": 1}],
    ids=str,
)
def test_rows_below_the_crop_are_skipped_and_the_others_are_the_same(scale, options):
    for image in (PHOTO, PHOTO.convert("L")):
        file = encoded(image, **options)
        whole, _ = file.decode_reduced(scale, 375)
        for rows in (1, 16, 101, 374, 375, 400):
            part, _ = file.decode_reduced(scale, rows)
            assert len(part) >= min(rows * scale, len(whole))
            np.testing.assert_array_equal(part, whole[: len(part)])
            if not options.get("progressive"):
                assert len(part) <= math.ceil(rows * scale)
        # Without an end marker Pillow reads the file, and its error names the damage.
        with pytest.raises(UserError, match="truncated"):
            EncodedImage(file.data[:-100], "cut.jpg").decode_reduced(scale, 100)


def test_headers_of_jpegs_agree_with_pillow():
    exif = Image.Exif()
    exif[0x0112] = 1
    icc = bytes(range(256)) * 600  # several segments that contain 0xFF 0xDA
    for options in ({}, {"icc_profile": icc}, {"comment": b"x" * 300}, {"progressive": True}):
        for image in (PHOTO, PHOTO.convert("L"), PHOTO.convert("CMYK")):
            for more in ({}, {"exif": exif}):
                header = read_header(encoded(image, **options, **more).data)
                assert (header.height, header.width) == (375, 500)
                assert header.components == len(image.getbands())
                assert (header.has_exif, header.progressive) == (
                    bool(more),
                    "progressive" in options,
                )
    data = encoded().data
    assert read_header(data[:2] + b"\xff\xff" + data[2:]).height == 375
    assert read_header(encoded(format="PNG").data) is None
    assert all(read_header(data[:n]) is None for n in range(150))


def rotated_by_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(PHOTO.rotate(90, expand=True), quality=95, exif=exif)


@pytest.mark.parametrize(
    "make",
    [
        lambda: encoded(format="PNG"),
        lambda: encoded(format="WEBP", quality=95),
        lambda: encoded(PHOTO.convert("CMYK"), quality=95),
        lambda: encoded(PHOTO.convert("RGBA"), "PNG"),
        lambda: encoded(PHOTO.quantize(256), "PNG"),
        rotated_by_exif,
    ],
    ids=["png", "webp", "cmyk", "alpha", "palette", "rotated by EXIF"],
)
def test_every_format_gives_the_same_crop(make):
    file = make()
    assert file.shape == (375, 500)
    expected = augmented("random_resized_crop", encoded(quality=95), seed=3)
    found = augmented("random_resized_crop", file, seed=3)
    assert np.abs(found.astype(float) - expected).mean() < 10


def test_grey_jpeg():
    found = augmented("random_resized_crop", encoded(PHOTO.convert("L")))
    assert found.shape == (64, 64, 3)
    assert np.ptp(found.astype(int), axis=-1).max() == 0


def test_transparency_becomes_white():
    clear = Image.new("RGBA", (100, 80), (0, 0, 0, 0))
    assert (augmented("random_resized_crop", encoded(clear, "PNG")) == 255).all()


def test_damaged_files_are_decoded_or_refused_by_name():
    """A thousand truncated files and files with flipped bits."""
    data, rng = encoded(PHOTO.resize((100, 75)), quality=90).data, np.random.default_rng(0)
    refused = 0
    for number in range(1000):
        if number % 2:
            changed = bytearray(data)
            for place in rng.integers(2, len(data), 3):
                changed[place] ^= 1 << int(rng.integers(8))
            damaged = bytes(changed)
        else:
            damaged = data[: int(rng.integers(len(data)))]
        try:
            image = augmented("random_resized_crop", EncodedImage(damaged, "shard/7"), number, 32)
        except UserError as error:
            assert "shard/7" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert image.shape == (32, 32, 3)
    assert 500 <= refused < 1000


def test_flip():
    image = np.asarray(PHOTO.resize((64, 64)))
    images = [augmented("flip", image, seed) for seed in range(200)]
    flipped = [np.array_equal(p, image[:, ::-1]) for p in images]
    same = [np.array_equal(p, image) for p in images]
    assert all(np.logical_xor(flipped, same))
    assert 70 < sum(flipped) < 130


LEVELS = np.arange(256)


@pytest.mark.parametrize(
    ("name", "magnitude", "expected"),
    [
        ("posterize", 5, LEVELS & 0b11000000),
        ("posterize", 0, 0 * LEVELS),
        ("posterize_increasing", 2.5, LEVELS & 0b11100000),
        ("posterize_original", 10, LEVELS),
        ("solarize", 5, np.where(LEVELS < 128, LEVELS, 255 - LEVELS)),
        ("solarize_increasing", 10, 255 - LEVELS),
        (
            "solarize_add",
            10,
            np.where(LEVELS < 128, np.minimum(LEVELS.astype(int) + 110, 255), LEVELS),
        ),
        ("brightness", 10, np.minimum(LEVELS * 1.9, 255)),
        ("brightness", 5, LEVELS),
        ("invert", 0, 255 - LEVELS),
        ("auto_contrast", 0, LEVELS),
        ("equalize", 0, LEVELS),
    ],
)
def test_operations_on_levels(name, magnitude, expected):
    ramp = Image.fromarray(np.tile(LEVELS[:, None], (4, 1, 3)).astype(np.uint8))
    found = OPERATIONS[name](ramp, magnitude, np.random.default_rng(0))
    assert np.abs(np.asarray(found)[0, :, 0] - np.asarray(expected, float)).max() <= 1


@pytest.mark.parametrize(("name", "move"), [("translate_x", (0, 9)), ("translate_y", (9, 0))])
def test_translation_by_magnitude(name, move):
    """Magnitude 2 moves by 9% of the side, in either direction."""
    image = np.asarray(PHOTO.resize((100, 100)))
    signs = set()
    for seed in range(20):
        found = np.asarray(OPERATIONS[name](Image.fromarray(image), 2, np.random.default_rng(seed)))
        for sign in (1, -1):
            rolled = np.roll(image, (sign * move[0], sign * move[1]), (0, 1))
            inner = (slice(10, 90), slice(10, 90))
            if np.abs(found[inner].astype(int) - rolled[inner]).mean() < 1:
                signs.add(sign)
    assert signs == {1, -1}


def test_randaugment_skips_half_of_the_operations():
    """Two layers of probability 1/2 leave at least a quarter of the images unchanged."""
    image = np.asarray(PHOTO.resize((32, 32)))
    same = [np.array_equal(augmented("randaugment(2, 9)", image, s, 32), image) for s in range(400)]
    assert 0.19 < np.mean(same) < 0.36
    always = "randaugment(2, 9, probability=1)"
    same = [np.array_equal(augmented(always, image, s, 32), image) for s in range(400)]
    assert np.mean(same) < 0.05


def test_randaugment_draws_from_fifteen():
    assert len(set(RandAugment().operations)) == 15
    assert set(RandAugment(inc=True).operations) <= set(OPERATIONS)


def test_autoaugment_changes_images():
    image = np.asarray(PHOTO.resize((32, 32)))
    images = [augmented("autoaugment", image, seed, 32) for seed in range(300)]
    assert len({p.tobytes() for p in images}) > 40


def test_three_augment_draws_each_of_three():
    image = np.asarray(PHOTO.resize((32, 32)))
    solarized = np.asarray(ImageOps.solarize(Image.fromarray(image)))
    counts = {"grey": 0, "solarized": 0, "blurred": 0}
    for seed in range(600):
        found = augmented("three_augment", image, seed, 32)
        if np.ptp(found.astype(int), axis=-1).max() == 0:
            counts["grey"] += 1
        elif np.array_equal(found, solarized):
            counts["solarized"] += 1
        else:
            counts["blurred"] += 1
    assert all(150 < count < 250 for count in counts.values())


def test_color_jitter_of_brightness():
    """Factors are uniform in 1 +- 0.4; hue and saturation do not change grey."""
    grey = np.full((8, 8, 3), 100, np.uint8)
    levels = [augmented("color_jitter(0.4, 0, 0.5, 0.3)", grey, s, 8)[0, 0, 0] for s in range(2000)]
    assert abs(np.mean(levels) - 100) < 2.5
    np.testing.assert_allclose(np.std(levels), 40 / math.sqrt(3), rtol=0.05)


def test_hue_rotated_by_a_third_exchanges_the_primaries():
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    green = np.asarray(rotate_hue(red, 1 / 3))[0, 0]
    assert np.abs(green.astype(int) - (0, 255, 0)).max() <= 6


def test_random_erasing():
    """Frequency, area, and normal noise of ImageNet's mean and deviation."""
    image = np.zeros((64, 64, 3), np.uint8)
    images = np.asarray([augmented("random_erasing(0.5)", image, s) for s in range(1000)])
    areas = (images != 0).any(-1).mean((1, 2))
    erased = images[areas > 0]
    assert 0.44 < len(erased) / 1000 < 0.56
    assert areas[areas > 0].min() > 0.015
    assert areas.max() < 0.36
    # Uniform up to the draws that did not fit.
    assert 0.15 < areas[areas > 0].mean() < (0.02 + 1 / 3) / 2 + 0.01
    noise = erased[(erased != 0).any(-1)] / 255
    np.testing.assert_allclose(noise.mean(0), (0.485, 0.456, 0.406), atol=0.01)
    np.testing.assert_allclose(noise.std(0), (0.229, 0.224, 0.225), atol=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random_resized_crop(scale=(0, 1))", "expected a range above 0"),
        ("random_resized_crop(scale=(0.5, 1.5))", "the whole image"),
        ("randaugment(2, 15)", "expected 0 to max_magnitude=10"),
        ("random_resize_crop", "did you mean 'random_resized_crop'"),
    ],
)
def test_wrong_arguments(text, message):
    with pytest.raises(UserError, match=message):
        parse_augmentation(text, model_inputs(8))


class Photos:
    """A number of examples with the same encoded photo."""

    def __init__(self, count):
        self.count, self.file = count, encoded(PHOTO.resize((80, 60)))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"image": self.file}


@pytest.mark.parametrize(
    "text",
    [RECIPE, "random_resized_crop|three_augment|color_jitter(0.3, 0.3, 0.3)|autoaugment"],
)
@pytest.mark.release
def test_worker_processes_change_nothing(text):
    transform = example_transform(("image",), parse_augmentation(text, model_inputs(32)))

    def take(workers):
        batches = Loader(Photos(10), transform, batch_size=8, seed=5, repeats=3, workers=workers)
        return np.stack([next(batches)["image"] for _ in range(3)])

    images = take(0)
    np.testing.assert_array_equal(images, take(2))
    assert len({p.tobytes() for p in images.reshape(24, -1)}) > 20
