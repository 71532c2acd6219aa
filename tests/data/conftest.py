"""The sample emoji, built once in the user's cache for all tests and workers."""

import pathlib

import pytest

from vit_jax.data.embedded import emoji


@pytest.fixture(scope="session")
def emoji_directory() -> pathlib.Path:
    """Folder of the built emoji."""
    return emoji.build()
