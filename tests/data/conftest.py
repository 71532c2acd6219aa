"""The embedded emoji, built once into the user's cache and shared by all tests and workers."""

import pathlib

import pytest

from vit_jax.data.embedded import emoji


@pytest.fixture(scope="session")
def emoji_directory() -> pathlib.Path:
    return emoji.build()
