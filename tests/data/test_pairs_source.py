"""Folders of images with captions, and slices with steps."""

import pickle

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.sources import open_source
from vit_jax.data.sources.pairs import words
from vit_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Images in folders of several depths; two of them have texts."""
    for name in ("a/b/red_car-02.png", "a/Grüner-Baum.jpg", "007.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(path)
    (tmp_path / "007.txt").write_text("a spy\n\n  a man in a suit \n")
    (tmp_path / "a" / "Grüner-Baum.txt").write_bytes(b"\xff")
    return tmp_path


def test_captions_in_text_files(folder, caplog):
    source = pickle.loads(pickle.dumps(open_source(f"pairs:{folder}")))
    assert len(source) == 2
    assert source[0]["captions"] == ["a spy", "a man in a suit"]
    assert source[0]["image"].shape == (2, 3)
    assert source.class_names is None
    assert "left out 1 without a text beside it (as red_car-02.png)" in caplog.text
    with pytest.raises(UserError, match=r"Grüner-Baum\.txt is not UTF-8"):
        source.annotation(1)


def test_images_alone(folder, tmp_path):
    source = pickle.loads(pickle.dumps(open_source(f"images:{folder}")))
    assert [set(source[i]) for i in range(len(source))] == [{"image", "key"}] * 3
    assert source.annotation(0)["key"].endswith("007.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in .*empty: expected .*\.png"):
        open_source(f"images:{tmp_path}/empty")


def test_captions_of_file_names(folder, caplog):
    source = open_source(f"pairs:{folder}?captions=file_name")
    captions = [source.annotation(i)["captions"] for i in range(len(source))]
    assert captions == [["Grüner Baum"], ["red car"]]
    assert "left out 1 without a word in its name (as 007.png)" in caplog.text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x/star_95pt06step.png", "star 95pt06step"),
        ("12-3.png", ""),
        ("a..b(1).tar.png", "a b tar"),
    ],
)
def test_words(name, expected):
    assert words(name) == expected


def test_no_captions(folder):
    (folder / "a" / "c").mkdir()
    with pytest.raises(UserError, match="no image folder"):
        open_source(f"pairs:{folder}/nothing")
    with pytest.raises(UserError, match=r"has 1 images, none with a text beside it: .*file_name"):
        open_source(f"pairs:{folder}/a/b")
    with pytest.raises(UserError, match=r"captions=.words."):
        open_source(f"pairs:{folder}?captions=words")


def test_slices_with_steps_and_their_rest():
    whole = open_source("digits:train[:25]")
    held_out = open_source("digits:train[:25][::10]")
    rest = open_source("digits:train[:25][!::10]")
    np.testing.assert_array_equal(held_out.labels, whole.labels[[0, 10, 20]])
    np.testing.assert_array_equal(rest.labels, np.delete(whole.labels, [0, 10, 20]))
    assert len(open_source("digits:train[5:25:4]")) == 5
    assert rest[1]["label"] == whole[2]["label"]
    with pytest.raises(UserError, match="the slice is the whole source"):
        open_source("digits:train[!:]")
