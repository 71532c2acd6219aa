"""Reference activations: files that `tests/data/make_*.py` wrote with the original libraries."""

import pathlib

import numpy as np

from vit_jax.weights.containers.files import open_weights
from vit_jax.weights.containers.writing import write_tensors

DATA = pathlib.Path(__file__).parents[1] / "data"
PREFIX = "reference."


def split_reference(
    name: str, directory: pathlib.Path
) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    """The original's weights alone, as a file in `directory`, and what it computed with them."""
    file = open_weights(DATA / name)
    tensors = {key: file.read(key) for key in file}
    weights = {key: value for key, value in tensors.items() if not key.startswith(PREFIX)}
    write_tensors(directory / name, weights)
    computed = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    return directory / name, computed


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest deviation as a fraction of the largest value."""
    assert found.shape == expected.shape
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
