"""Base class of weight formats."""

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry


class Format(abc.ABC):
    """How a library names and stores the parameters of an architecture.

    A library that has several architectures has one subclass per architecture, all with the same
    `name`. They are listed as `FORMATS` in the module `weights` of each architecture's package.

    Attributes:
        name: name of the library, as users type it.
        architectures: config dataclasses of the models that the format can hold.
        ignored: patterns (`fnmatch`) of tensors that are not parameters: buffers and settings.
        description: name of the JSON file beside the weights that describes the architecture.
        heads: patterns of the tensors of a classification head, which a model of another number
            of classes does not read.
        container: file type for export, "safetensors" or "npz".
        metadata: header of exported safetensors files. Transformers requires the default.
    """

    name: ClassVar[str]
    architectures: ClassVar[tuple[type, ...]]
    ignored: ClassVar[tuple[str, ...]] = ()
    description: ClassVar[str] = "config.json"
    heads: ClassVar[tuple[str, ...]] = ()
    container: ClassVar[str] = "safetensors"
    metadata: ClassVar[Mapping[str, str]] = MappingProxyType({"format": "pt"})

    @abc.abstractmethod
    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has this format, judged by the names of its tensors."""

    @abc.abstractmethod
    def entries(self, architecture: Any) -> list[Entry]:
        """Returns the mapping between the tensors of a file and the parameters of a model.

        Args:
            architecture: config dataclass of the model. Every parameter of the model must have an
                entry.

        Raises:
            UserError: the format cannot hold such a model.
        """

    def view(self, file: TensorFile, architecture: Any) -> TensorFile:
        """Returns a file under the names of `entries`.

        Libraries that have used several names for a tensor override this method.

        Args:
            file: file of this format.
            architecture: config dataclass of the model to load.
        """
        del architecture
        return file

    def constants(self, architecture: Any) -> dict[str, np.ndarray]:
        """Returns tensors that the library requires and the model computes, by name.

        They are written on export. A file may lack them. If it has them, their values are compared
        with these, unless their names are `ignored`.
        """
        del architecture
        return {}

    def architecture(self, file: TensorFile, config: Mapping[str, Any] | None) -> Any:
        """Returns the architecture of a file, or None if it cannot be determined.

        Args:
            file: file of this format.
            config: content of the `description` beside the weights, if there is one.
        """
        del file, config
        return None

    def settle(self, architecture: Any, file: TensorFile) -> Any:
        """Returns an architecture with the settings that a file of this format determines.

        These are settings without a tensor of their own, as the activation of OpenAI's weights.

        Args:
            architecture: config dataclass of the model.
            file: file of this format.
        """
        del file
        return architecture
