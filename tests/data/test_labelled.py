"""Labelled samples: sizes, fixed stratified splits, absent packages, damaged files."""

import gzip
import pathlib

import numpy as np
import pytest

from vit_jax.data.embedded import labelled
from vit_jax.errors import MissingPackageError, UserError

needs_fashion = pytest.mark.skipif(
    not labelled.FASHION_FOLDER.exists(), reason=f"no {labelled.FASHION_FOLDER}"
)


@pytest.mark.parametrize(
    ("name", "train", "test", "side"),
    [
        ("digits", 1438, 359, 8),
        ("mnist5k", 4000, 1000, 28),
        pytest.param("fashion_mnist", 60000, 10000, 28, marks=needs_fashion),
    ],
)
def test_sizes_and_types(name, train, test, side):
    for split, count in (("train", train), ("test", test)):
        data = labelled.load(name, split)
        assert data.images.shape == (count, side, side)
        assert data.images.dtype == np.uint8
        assert data.images.max() == 255
        assert data.images.min() == 0
        assert data.labels.shape == (count,)
        assert data.labels.dtype == np.int64
        assert set(data.labels) == set(range(len(data.class_names)))


def test_split_is_stratified_fixed_and_disjoint():
    from sklearn.datasets import load_digits

    train, test = labelled.load("digits", "train"), labelled.load("digits", "test")
    counts = np.bincount(load_digits().target)
    assert (np.bincount(test.labels) == np.round(counts * 0.2)).all()
    assert (np.bincount(train.labels) + np.bincount(test.labels) == counts).all()
    labelled.load.cache_clear()
    assert (labelled.load("digits", "test").images == test.images).all()
    images = [image.tobytes() for part in (train, test) for image in part.images]
    whole = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(images) == sorted(image.tobytes() for image in whole)


def test_errors_of_unknown_names_contain_the_nearest():
    with pytest.raises(UserError, match="did you mean 'digits'"):
        labelled.load("digit", "train")
    with pytest.raises(UserError, match="did you mean 'test'"):
        labelled.load("digits", "tests")


def test_absent_fashion_mnist_names_the_package(monkeypatch, tmp_path):
    labelled.load.cache_clear()
    monkeypatch.setattr(labelled, "FASHION_FOLDER", tmp_path)
    with pytest.raises(MissingPackageError, match="apt install dataset-fashion-mnist"):
        labelled.load("fashion_mnist", "test")


@pytest.mark.parametrize(
    "content",
    [
        b"not gzip",
        gzip.compress(b"\0\0\x08\x01" + b"\0" * 12),
        gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\x09" * 3 + b"short"),
        gzip.compress(b"\0\0\x08\x03" + b"\0" * 999)[:20],
    ],
    ids=["not gzip", "other rank", "too short", "truncated gzip"],
)
def test_damaged_fashion_mnist(monkeypatch, tmp_path: pathlib.Path, content: bytes):
    labelled.load.cache_clear()
    monkeypatch.setattr(labelled, "FASHION_FOLDER", tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"t10k-images.*not a complete idx file"):
        labelled.load("fashion_mnist", "test")
