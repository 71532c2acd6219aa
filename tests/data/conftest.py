"""Sources of the tests of data."""

import pathlib

import pytest
from PIL import Image

from vit_jax.data.embedded import emoji


@pytest.fixture(scope="session")
def emoji_directory() -> pathlib.Path:
    """Folder of the emoji, built once in the user's cache for all tests and workers."""
    return emoji.build()


@pytest.fixture
def two_classes(tmp_path: pathlib.Path) -> pathlib.Path:
    """Folder with three images of each of two classes."""
    for name, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("RGB", (5, 4), colour).save(tmp_path / name / f"{index}.png")
    return tmp_path
