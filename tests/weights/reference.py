"""Reference activations, generated with the original libraries by tests/fixtures/generators."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.pretrained.weight_files import known_formats
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.containers.writing import write_tensors
from vit_jax.weights.recognition import recognise
from vit_jax.weights.unwrapping import unwrap

DATA = pathlib.Path(__file__).parents[1] / "fixtures" / "weights"
PREFIX = "reference."


def split_reference(
    name: str, directory: pathlib.Path
) -> tuple[pathlib.Path, dict[str, jax.Array]]:
    """Splits a fixture into weights and reference values.

    Args:
        name: file name of the fixture.
        directory: folder for the file of the weights.

    Returns:
        Path of the weights, and inputs and outputs of the original library by name.
    """
    file = open_weights(DATA / name)
    tensors = {key: file.read(key) for key in file}
    weights = {key: value for key, value in tensors.items() if not key.startswith(PREFIX)}
    write_tensors(directory / name, weights)
    computed = {
        k.removeprefix(PREFIX): jnp.asarray(v) for k, v in tensors.items() if k.startswith(PREFIX)
    }
    return directory / name, computed


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest deviation as a fraction of the largest value."""
    assert found.shape == expected.shape
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def format_of(file: TensorFile | pathlib.Path) -> str:
    """Returns the name of the format that a file is recognised as."""
    file = file if isinstance(file, TensorFile) else open_weights(file)
    return recognise(unwrap(file, known_formats()), known_formats()).name
