"""Sources: specs, slices, samples, folders, decoding of images."""

import dataclasses
import pickle
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.embedded import emoji
from vit_jax.data.images import read_image
from vit_jax.data.sources import Source, open_source
from vit_jax.errors import UserError

# --- samples --------------------------------------------------------------------------------------


def test_emoji_source(emoji_directory):
    source = open_source("emoji:heldout_names")
    example = source[7]
    assert example["image"].shape == (64, 64, 4)
    assert example["image"].dtype == np.uint8
    assert source.class_names == emoji.base_names()
    assert source.class_names[example["label"]] == example["name"] == example["captions"][0]
    assert [source[i]["label"] for i in range(len(source))] == source.labels.tolist()


def test_trimmed_emoji_have_the_aspect_ratio_of_their_drawing(emoji_directory):
    source, whole = (open_source(f"emoji:heldout_names{x}") for x in ("?trim=true", ""))
    for index in range(0, 40, 5):
        image, alpha = source[index]["image"], whole[index]["image"][..., 3] > 0
        inner = image[1:-1, 1:-1]  # one transparent pixel remains on each side
        rows, columns = (np.flatnonzero(alpha.any(axis)) for axis in (1, 0))
        assert inner.shape[:2] == (np.ptp(rows) + 1, np.ptp(columns) + 1)
        assert image[..., 3].sum() == inner[..., 3].sum() == whole[index]["image"][..., 3].sum()
    assert len({source[index]["image"].shape[1] for index in range(40)}) > 5


def test_toned_emoji_have_both_captions(emoji_directory):
    source = open_source("emoji:train[:200]")
    toned = [example for example in map(source.__getitem__, range(200)) if example["skin_tone"]]
    assert toned
    for example in toned:
        assert example["captions"][0].startswith(f"{example['name']}: ")
        assert example["captions"][1] == example["name"]


def test_changing_an_example_does_not_change_the_source(emoji_directory):
    source = open_source("emoji:heldout_names")
    source[0]["name"] = "mine"
    assert source[0]["name"] != "mine"
    assert not source[0]["image"].flags.writeable


def test_reading_decoded_examples_is_fast(emoji_directory):
    source = open_source("emoji:heldout_names")
    examples = [source[index] for index in range(len(source))]
    started = time.perf_counter()
    for index in range(len(source)):
        source[index]
    assert (time.perf_counter() - started) / len(examples) < 100e-6


def test_digits_source():
    source = open_source("digits:test")
    example = source[3]
    assert example["image"].shape == (8, 8, 3)
    assert example["image"].dtype == np.uint8
    assert source.class_names[example["label"]] == example["name"]
    assert len(source) == len(source.labels) == 359


@pytest.mark.parametrize(
    "spec",
    [
        "emoji:heldout_names",
        "emoji:heldout_names?trim=true",
        "digits:train",
        "digits:train[10%:20%]",
        "folder",
    ],
)
def test_pickle_is_small_and_faithful(spec, two_classes, emoji_directory):
    source = open_source(f"folder:{two_classes}" if spec == "folder" else spec)
    data = pickle.dumps(source)
    assert len(data) < 50_000
    copy = pickle.loads(data)
    assert len(copy) == len(source)
    assert copy.class_names == source.class_names
    np.testing.assert_equal(copy[2]["image"], source[2]["image"])
    assert copy[2]["label"] == source[2]["label"]


# --- specs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "start", "stop"),
    [
        ("[:80%]", 0, 1150),
        ("[80%:]", 1150, 1438),
        ("[100:200]", 100, 200),
        ("[-38:]", 1400, 1438),
        ("[:-50%]", 0, 719),
        ("[:]", 0, 1438),
    ],
)
def test_slices(part, start, stop):
    whole, some = open_source("digits:train"), open_source(f"digits:train{part}")
    assert len(some) == stop - start
    np.testing.assert_array_equal(some.labels, whole.labels[start:stop])
    np.testing.assert_array_equal(some[0]["image"], whole[start]["image"])
    np.testing.assert_array_equal(some[len(some) - 1]["image"], whole[stop - 1]["image"])
    with pytest.raises(IndexError):
        some[len(some)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("emojis:train", "unknown data source 'emojis'; did you mean 'emoji'"),
        ("emoji:trian", "did you mean 'train'"),
        ("digits", "split of digits ''; known: test, train"),
        ("digits:train[5:2]", r"\[5:2\], but the source has 1438"),
        ("digits:train[:120%]", "1438 examples"),
        ("digits:train[a:b]", "unknown split"),
        ("folder:/no/such/place", "no image folder /no/such/place"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message):
        open_source(spec)


class Clouds(Source):
    """A source from outside the package."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Source.Config):
        """Options of the spec."""

        size: int = 2
        shades: tuple[str, ...] = ("grey",)
        stormy: bool = False
        path: str | None = None

    def __init__(self, config, place):
        self.config, self.place = config, place
        self.class_names = ["cirrus", "cumulus"]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if not 0 <= index < 4:
            raise IndexError(index)
        image = np.full((self.config.size, self.config.size, 3), index, np.uint8)
        return {"image": image, "label": index % 2, "key": f"{self.place}/{index}"}


@pytest.fixture
def my_project(monkeypatch):
    module = types.ModuleType("my_project.data")
    module.Clouds = Clouds
    monkeypatch.setitem(sys.modules, "my_project", types.ModuleType("my_project"))
    monkeypatch.setitem(sys.modules, "my_project.data", module)


def test_source_from_outside_the_package(my_project):
    source = open_source("my_project.data:Clouds:gs://sky/*.png?size=3&shades=red,pink&stormy=true")
    assert source.config == Clouds.Config(size=3, shades=("red", "pink"), stormy=True)
    assert source.place == "gs://sky/*.png"
    assert source[1]["image"].shape == (3, 3, 3)
    assert open_source("my_project.data:Clouds").place == ""
    assert open_source("my_project.data:Clouds:a?path=b=c").config.path == "b=c"


def test_source_from_outside_needs_two_methods_only(my_project):
    source = open_source("my_project.data:Clouds:train[1:]")
    assert source.annotation(0) == {"label": 1, "key": "train/1"}
    assert source.labels.tolist() == [1, 0, 1]
    both = open_source("my_project.data:Clouds:train + my_project.data:Clouds:test?size=3")
    assert [len(both), both[5]["key"]] == [8, "test/1"]
    weighted = open_source("0.5*my_project.data:Clouds:a + 0.5*digits:test")
    assert weighted.weights == [0.5, 0.5]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "my_project.data:Cloud:a",
            "unknown name in my_project.data 'Cloud'; did you mean 'Clouds'",
        ),
        ("my_project.dat:Clouds:a", "cannot be imported"),
        ("my_project.data:Clouds:a?sze=3", "unknown option of .*: 'sze'; did you mean 'size'"),
        ("my_project.data:Clouds:a?size=big", "size='big': expected int"),
        ("my_project.data:Clouds:a?size=", "option size has no value"),
        ("digits:train?size=3", "unknown option of digits: 'size'; known: none"),
    ],
)
def test_bad_specs_of_sources_from_outside(my_project, spec, message):
    with pytest.raises(UserError, match=message):
        open_source(spec)


# --- folders --------------------------------------------------------------------------------------


# --- decoding -------------------------------------------------------------------------------------

RED = (255, 0, 0)


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("RGB", RED, "png", RED),
        ("RGBA", (255, 0, 0, 100), "png", (255, 0, 0, 100)),
        ("L", 99, "png", (99, 99, 99)),
        ("LA", (99, 50), "png", (99, 99, 99, 50)),
        ("1", 1, "png", (255, 255, 255)),
        ("I;16", 25700, "png", (100, 100, 100)),
        ("CMYK", (0, 255, 255, 0), "tiff", RED),
        ("RGB", RED, "bmp", RED),
        ("RGB", RED, "gif", RED),
    ],
)
def test_modes(tmp_path, mode, colour, suffix, expected):
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (6, 4), colour).save(path)
    pixels = read_image(path)
    assert pixels.shape == (4, 6, len(expected))
    assert pixels.dtype == np.uint8
    assert (pixels == expected).all()
    np.testing.assert_array_equal(read_image(path.read_bytes()), pixels)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (6, 4), 1)
    image.putpalette([9, 9, 9, 255, 0, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=0)
    assert (read_image(tmp_path / "opaque.png")[0, 0] == (9, 9, 9)).all()
    clear = read_image(tmp_path / "clear.png")
    assert clear.shape == (4, 6, 4)
    assert clear[0, 0, 3] == 0
    assert (clear[1, 1] == (255, 0, 0, 255)).all()


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - RED).max() < 4


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (32, 16), RED)
    image.paste((0, 0, 255), (0, 0, 16, 16))  # the left half is blue
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise: blue is at the top
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels = read_image(tmp_path / "turned.jpg")
    assert pixels.shape == (32, 16, 3)
    assert pixels[4, 8, 2] > 200
    assert pixels[28, 8, 0] > 200


def test_floating_point_pixels_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match=r"float.tiff.*8 bits"):
        read_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp"])
def test_errors_of_truncated_images_contain_the_path(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=f"cut.{suffix}"):
        read_image(path)


def test_errors_of_damaged_and_absent_images_contain_the_path(two_classes):
    (two_classes / "cat" / "0.png").write_text("hello")
    (two_classes / "cat" / "1.png").write_bytes(b"")
    source = open_source(f"folder:{two_classes}")
    for index in range(2):
        with pytest.raises(UserError, match=f"cannot read the image .*cat/{index}.png"):
            source[index]["image"].decode()
    (two_classes / "cat" / "2.png").unlink()
    with pytest.raises(UserError, match=r"no file .*cat/2.png"):
        source[2]


# --- classes and links ----------------------------------------------------------------------------
