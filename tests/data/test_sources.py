"""Sources: specs, slices, folders, image modes, pickling, speed, what is imported."""

import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.embedded import emoji
from vit_jax.data.images import read_image
from vit_jax.data.sources import ImageFolder, open_source
from vit_jax.errors import UserError


@pytest.fixture
def two_classes(tmp_path):
    for name, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("RGB", (5, 4), colour).save(tmp_path / name / f"{index}.png")
    return tmp_path


# --- embedded -------------------------------------------------------------------------------------


def test_emoji_source(emoji_directory):
    source = open_source("emoji:heldout_names")
    example = source[7]
    assert example["image"].shape == (64, 64, 4)
    assert example["image"].dtype == np.uint8
    assert source.class_names == emoji.base_names()
    assert source.class_names[example["label"]] == example["name"] == example["captions"][0]
    assert [source[i]["label"] for i in range(len(source))] == source.labels.tolist()


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


def test_getitem_is_quick(emoji_directory):
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
    "spec", ["emoji:heldout_names", "digits:train", "digits:train[10%:20%]", "folder"]
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
        ("emojis:train", "did you mean 'emoji'"),
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


def test_names_file_needs_a_folder(tmp_path):
    with pytest.raises(UserError, match="goes with a folder"):
        open_source("digits:test", names_file=tmp_path / "names.txt")


# --- folders --------------------------------------------------------------------------------------


def test_class_folders(two_classes):
    source = open_source(f"folder:{two_classes}")
    assert source.class_names == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source[4]["name"] == "dog"
    assert source[4]["captions"] == ["dog"]
    image = source[4]["image"].decode()
    assert (image == (0, 0, 255)).all()
    assert image.shape == (4, 5, 3)
    assert len(open_source(f"folder:{two_classes}[:50%]")) == 3


def test_names_file(two_classes, tmp_path):
    names = tmp_path / "names.tsv"
    names.write_text("\ufeffdog/1.png\ta dog, blue\n\ncat/0.png, red cat\n", "utf-8")
    source = open_source(f"folder:{two_classes}", names_file=names)
    assert source.class_names == ["a dog, blue", "red cat"]
    assert [source[i]["name"] for i in range(2)] == ["a dog, blue", "red cat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat/9.png\tcat\n", "names 1 files that are not in .*: 9.png"),
        ("cat/0.png cat\n", r"names.txt:1: expected"),
        ("cat/0.png\t\n", r"names.txt:1: expected"),
        ("cat/0.png,cat\ncat/0.png,dog\n", "names.txt:2: cat/0.png is also 'cat' above"),
        ("\n", "is empty"),
    ],
)
def test_bad_names_files(two_classes, tmp_path, text, message):
    names = tmp_path / "names.txt"
    names.write_text(text)
    with pytest.raises(UserError, match=message):
        ImageFolder(two_classes, names)


def test_names_file_that_is_absent_or_binary(two_classes, tmp_path):
    with pytest.raises(UserError, match=r"no names file .*nope.txt"):
        ImageFolder(two_classes, tmp_path / "nope.txt")
    with pytest.raises(UserError, match=r"0.png is not UTF-8 text"):
        ImageFolder(two_classes, two_classes / "cat" / "0.png")


def test_folders_without_pictures(two_classes, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=f"no pictures in {empty}"):
        ImageFolder(empty)
    (two_classes / "emu").mkdir()
    with pytest.raises(UserError, match=r"without pictures in .*: emu"):
        ImageFolder(two_classes)
    with pytest.raises(UserError, match="is a file, expected a folder"):
        ImageFolder(two_classes / "cat" / "0.png")


def test_loose_pictures(two_classes):
    Image.new("L", (2, 2)).save(two_classes / "loose.png")
    with pytest.raises(UserError, match=r"loose.png"):
        ImageFolder(two_classes)


# --- images -------------------------------------------------------------------------------------

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
    path = tmp_path / f"picture.{suffix}"
    Image.new(mode, (6, 4), colour).save(path)
    pixels = read_image(path)
    assert pixels.shape == (4, 6, len(expected))
    assert pixels.dtype == np.uint8
    assert (pixels == expected).all()
    np.testing.assert_array_equal(read_image(path.read_bytes()), pixels)


def test_palette_with_transparency(tmp_path):
    picture = Image.new("P", (6, 4), 1)
    picture.putpalette([9, 9, 9, 255, 0, 0])
    picture.putpixel((0, 0), 0)
    picture.save(tmp_path / "opaque.png")
    picture.save(tmp_path / "clear.png", transparency=0)
    assert (read_image(tmp_path / "opaque.png")[0, 0] == (9, 9, 9)).all()
    clear = read_image(tmp_path / "clear.png")
    assert clear.shape == (4, 6, 4)
    assert clear[0, 0, 3] == 0
    assert (clear[1, 1] == (255, 0, 0, 255)).all()


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - RED).max() < 4


def test_exif_orientation(tmp_path):
    picture = Image.new("RGB", (32, 16), RED)
    picture.paste((0, 0, 255), (0, 0, 16, 16))  # Left half blue.
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn 90 degrees clockwise to show: blue comes to the top.
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels = read_image(tmp_path / "turned.jpg")
    assert pixels.shape == (32, 16, 3)
    assert pixels[4, 8, 2] > 200
    assert pixels[28, 8, 0] > 200


def test_float_picture_is_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match=r"float.tiff.*8 bits"):
        read_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp"])
def test_truncated_pictures_name_the_path(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=f"cut.{suffix}"):
        read_image(path)


def test_unreadable_and_absent_pictures_name_the_path(two_classes):
    (two_classes / "cat" / "0.png").write_text("hello")
    (two_classes / "cat" / "1.png").write_bytes(b"")
    source = ImageFolder(two_classes)
    for index in range(2):
        with pytest.raises(UserError, match=f"cannot read the picture .*cat/{index}.png"):
            source[index]["image"].decode()
    (two_classes / "cat" / "2.png").unlink()
    with pytest.raises(UserError, match=r"no file .*cat/2.png"):
        source[2]


# --- imports --------------------------------------------------------------------------------------


def test_neither_tensorflow_nor_torch_is_imported(emoji_directory):
    code = (
        "import sys; from vit_jax.data.sources import open_source\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "open_source('emoji:heldout_names')[0]; open_source('digits:test')[0]\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
