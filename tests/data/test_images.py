"""One way in for images: files of every mode, PIL images, arrays; and the limit of pixels."""

import io
import logging
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image

from vit_jax.data import images as images_lib
from vit_jax.data.augment import parse_augmentation
from vit_jax.data.images import EncodedImage, read_image
from vit_jax.data.loader import Loader
from vit_jax.data.shards import encode
from vit_jax.data.sources.base import Source, Subset
from vit_jax.errors import UserError
from vit_jax.evaluators.cache import source_fingerprint
from vit_jax.evaluators.retrieval import distinct_images
from vit_jax.inputs import ImageInputs

RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 1 << 16, (6, 9), np.uint16)
GREY = (LEVELS >> 8).astype(np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3), np.uint8)
RGBA = RNG.integers(0, 256, (6, 9, 4), np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def palette():
    image = Image.fromarray((GREY % 4).astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([9, 8, 7, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return image


def palette_pixels():
    colours = np.array([[9, 8, 7, 0], [255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]])
    return colours[GREY % 4].astype(np.uint8)


def turned(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(Image.fromarray(RGB), exif=exif)


def on_grey(levels, alpha=None):
    channels = [levels] * 3 + ([] if alpha is None else [alpha])
    return np.stack(channels, -1).astype(np.uint8)


FILES = {
    "16 bits": (encoded(Image.fromarray(LEVELS)), on_grey(GREY)),
    "16 bits, one level transparent": (
        encoded(Image.fromarray(LEVELS), transparency=int(LEVELS[2, 3])),
        on_grey(GREY, np.where(LEVELS[2, 3] == LEVELS, 0, 255)),
    ),
    "16 bits, TIFF": (encoded(Image.fromarray(LEVELS), "TIFF"), on_grey(GREY)),
    "32 bits of 16": (encoded(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"), on_grey(GREY)),
    "one bit": (encoded(Image.fromarray(GREY > 99)), on_grey((GREY > 99) * 255)),
    "grey": (encoded(Image.fromarray(GREY)), on_grey(GREY)),
    "grey with alpha": (
        encoded(Image.fromarray(RGBA[..., :2].copy(), "LA")),
        on_grey(RGBA[..., 0], RGBA[..., 1]),
    ),
    "palette with transparency": (encoded(palette(), transparency=0), palette_pixels()),
    "palette": (encoded(palette()), palette_pixels()[..., :3]),
    "RGBA": (encoded(Image.fromarray(RGBA)), RGBA),
    "orientation 3": (turned(3), RGB[::-1, ::-1]),
    "orientation 6": (turned(6), np.rot90(RGB, -1)),
    "orientation 8": (turned(8), np.rot90(RGB)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_same_in_every_form(name, tmp_path):
    data, expected = FILES[name]
    path = tmp_path / "image"
    path.write_bytes(data)
    forms = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data)]
    forms += [Image.open(path), EncodedImage(data)]
    with path.open("rb") as file:
        for form in [*forms, file, file]:  # an open file can be read twice
            found = read_image(form)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, expected, err_msg=type(form).__name__)
    assert EncodedImage(data).shape == expected.shape[:2]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, on_grey(GREY)),
        (GREY[..., None], on_grey(GREY)),
        (LEVELS, on_grey(GREY)),
        (LEVELS.astype(">u2")[..., None], on_grey(GREY)),
        (GREY / 255, on_grey(GREY)),
        ((RGB / 255).astype(np.float32), RGB),
        ((RGBA / 255).astype(np.float16), RGBA),
        (GREY > 99, on_grey((GREY > 99) * 255)),
        (RGBA[..., :2], on_grey(RGBA[..., 0], RGBA[..., 1])),
        (RGB[:, ::-1], RGB[:, ::-1]),
        (np.stack([LEVELS] * 4, -1), on_grey(GREY, GREY)),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_arrays_of_any_type(array, expected):
    found = read_image(array)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    inputs = ImageInputs(size=(4, 4))
    np.testing.assert_array_equal(parse_augmentation("", inputs)(array, RNG), inputs(expected))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB.astype(np.float32), r"from 1 to 255, expected \[0, 1\]; .* convert them to uint8"),
        (RGB / 127.5 - 1, r"from -0.992157 to 1, expected \[0, 1\]"),
        (np.full((4, 4), np.nan), r"expected \[0, 1\]"),
        (RGB.astype(np.int64), "type int64, expected uint8, uint16, bool, or floating point"),
        (RGB.transpose(2, 0, 1), r"shape \(3, 6, 9\), expected .*with 1 to 4 channels"),
        (RGB[None], r"shape \(1, 6, 9, 3\)"),
        (RGB[:0], r"shape \(0, 9, 3\)"),
        ([[1, 2], [3, 4]], "expected a path, .* found list"),
        (None, "found NoneType"),
        (io.StringIO("x"), "open in text mode, expected binary mode"),
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "32-bit pixels from 70000 to 70000"),
        (Image.new("F", (4, 4), 0.5), "floating-point pixels have no defined range; save"),
        ("absent.png", "no image at absent.png"),
        (b"text", "cannot read the image in 4 bytes: no image of a format"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_defined_range_is_refused(image, message):
    with pytest.raises(UserError, match=message):
        read_image(image)


class Examples(Source):
    """A source of the user."""

    def __init__(self, images):
        self._images = images

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        return {"image": self._images[index]}


def test_sources_may_have_images_of_any_kind():
    """A source of the user that returns PIL images: training, evaluation and preparation."""
    examples = Examples([Image.open(io.BytesIO(turned(6))), np.rot90(RGB, -1)])
    inputs = ImageInputs(size=(4, 4))
    first, second = (parse_augmentation("random_resized_crop", inputs)(
        each["image"], np.random.default_rng(0)) for each in examples)  # fmt: skip
    np.testing.assert_array_equal(first, second)
    assert distinct_images(examples) == ([0], [0, 0])
    assert source_fingerprint(Subset(examples, [0])) == source_fingerprint(Subset(examples, [1]))
    np.testing.assert_array_equal(read_image(encode(examples[0]["image"], 0, 0)), np.rot90(RGB, -1))


# --- limit of pixels ------------------------------------------------------------------------------

KINDS = {"JPEG": "RGB", "PNG": "1"}


@pytest.mark.parametrize("kind", KINDS)
def test_images_above_the_limit_are_refused_before_they_are_decoded(kind):
    data = encoded(Image.new(KINDS[kind], (2000, 1000)), kind)
    tracemalloc.start()
    for text in ("", "resize", "random_resized_crop"):
        augmentation = parse_augmentation(text, ImageInputs(size=(8, 8)), max_pixels=1_999_999)
        with pytest.raises(
            UserError,
            match=r"image shard/7: 2000 x 1000 px are more than max_image_pixels=1999999$",
        ):
            augmentation(EncodedImage(data, "shard/7"), np.random.default_rng(0))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    for limit in (2_000_000, 0):
        inputs = ImageInputs(size=(8, 8))
        assert parse_augmentation("", inputs, limit)(data, RNG).shape == (8, 8, 3)
    with pytest.raises(UserError, match="max_image_pixels=10"):
        read_image(Image.open(io.BytesIO(data)), max_pixels=10)
    with pytest.raises(UserError, match="max_image_pixels=10"):
        encode(EncodedImage(data), 0, 0, 10)


def test_images_above_the_limit_count_as_broken(caplog):
    augment = parse_augmentation("", ImageInputs(size=(8, 8)), max_pixels=1000)
    loader = Loader(
        Examples(
            [
                EncodedImage(encoded(Image.new("L", (side, side))), f"image {i}")
                for i, side in enumerate((9, 9, 90, 9))
            ]
        ),
        lambda example, rng: {"image": augment(example["image"], rng)},
        batch_size=4,
        seed=0,
        max_broken_fraction=0.5,
    )
    with caplog.at_level(logging.ERROR):
        next(loader)
    assert loader.broken(4) == 1
    assert "image 2: 90 x 90 px are more than max_image_pixels=1000" in caplog.text


def test_one_line_for_all_large_images(caplog, monkeypatch):
    monkeypatch.setattr(images_lib, "_LARGE", 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    images_lib._large_logged.clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        for _ in range(3):
            read_image(FILES["RGBA"][0])
            EncodedImage(FILES["grey"][0]).decode()
    (line,) = caplog.messages
    assert line.startswith("Large image in ")
    assert "9 x 6 px" in line
    assert "max_image_pixels=178956970 is the limit" in line
    images_lib._large_logged.clear()


def test_pillows_own_limit_gives_way_to_a_higher_one(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(FILES["RGBA"][0], max_pixels=54).shape == (6, 9, 4)
    with pytest.raises(UserError, match="more than max_image_pixels=20"):
        read_image(FILES["RGBA"][0], max_pixels=20)
    assert read_image(FILES["RGBA"][0], max_pixels=0).shape == (6, 9, 4)


@pytest.mark.parametrize("format", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_the_shape_in_the_header_is_that_of_the_decoded_image(format, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stream = io.BytesIO()
    Image.new("RGB", (30, 2)).save(stream, format, exif=exif)
    encoded = EncodedImage(stream.getvalue())
    assert encoded.shape == encoded.decode().shape[:2]
    assert encoded.shape == ((30, 2) if orientation >= 5 else (2, 30))
