"""Former Flax models of Hugging Face's transformers (`flax_model.msgpack`).

Their modules had the names of the library's PyTorch models. Layers have the names and the layouts
of flax.linen: `kernel` (in, out) for `weight` (out, in), `scale` for the weight of a norm,
`embedding` for that of a table.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.weights.containers.tensors import LazyTensor, TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers

NAME = "transformers_flax"
_WEIGHTS = ("kernel", "scale", "embedding")
# Axes of PyTorch's kernels in Flax's, by the number of dimensions: linear layers, convolutions.
_TO_TORCH, _TO_FLAX = {2: (1, 0), 4: (3, 2, 0, 1)}, {2: (1, 0), 4: (2, 3, 1, 0)}


class FlaxNames(Format):
    """A format of transformers under the names of Flax.

    It is the first base class, and the format of the PyTorch model the second one.
    """

    name = NAME
    container = "msgpack"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has linear layers of Flax and the names of the model."""
        is_flax = any(key.endswith("/kernel") for key in file)
        return is_flax and super().matches(_as_torch(file))  # type: ignore[safe-super]

    def view(self, file: TensorFile, architecture: Any) -> TensorFile:
        """Returns the file under the names and in the layouts of PyTorch; see `Format.view`."""
        return super().view(_as_torch(file), architecture)

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> Any:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        return super().architecture(_as_torch(file), config)

    def written(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns tensors under the names and in the layouts of Flax; see `Format.written`."""
        return dict(_to_flax(key, value) for key, value in tensors.items())


def _as_torch(file: TensorFile) -> TensorFile:
    return file.converted(_to_torch)


def _to_torch(key: str, tensor: LazyTensor) -> tuple[str, LazyTensor]:
    *path, last = key.split("/")
    if last not in _WEIGHTS:
        return ".".join((*path, last)), tensor
    axes = _TO_TORCH.get(len(tensor.shape)) if last == "kernel" else None
    if axes is not None:
        shape = tuple(tensor.shape[i] for i in axes)
        tensor = LazyTensor(shape, tensor.dtype, functools.partial(_transposed, tensor, axes))
    return ".".join((*path, "weight")), tensor


def _transposed(tensor: LazyTensor, axes: tuple[int, ...]) -> np.ndarray:
    return tensor.load().transpose(axes)


def _to_flax(key: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    *path, last = key.split(".")
    if last != "weight":
        return "/".join((*path, last)), value
    if value.ndim == 1:
        return "/".join((*path, "scale")), value
    if path[-1] in ("token_embedding", "position_embedding"):
        return "/".join((*path, "embedding")), value
    return "/".join((*path, "kernel")), value.transpose(_TO_FLAX[value.ndim])
