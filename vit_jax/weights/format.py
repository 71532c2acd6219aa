"""What a foreign format tells of itself."""

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from vit_jax.errors import UserError
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.mapping import Entry


class Format(abc.ABC):
    """Names and layouts of another library's weights.

    Attributes:
        name: as users type it.
        families: our model families (`registry.FAMILIES`) that it can hold.
        ignored: patterns (`fnmatch`) of tensors that hold no parameter: buffers and settings.
        container: what exported files are, "safetensors" or "npz".
        metadata: in the header of exported safetensors files; transformers demands this one.
    """

    name: ClassVar[str]
    families: ClassVar[tuple[str, ...]]
    ignored: ClassVar[tuple[str, ...]] = ()
    container: ClassVar[str] = "safetensors"
    metadata: ClassVar[Mapping[str, str]] = MappingProxyType({"format": "pt"})

    @abc.abstractmethod
    def matches(self, file: TensorFile) -> bool:
        """Whether the file is of this format, by its tensors' names."""

    @abc.abstractmethod
    def entries(self, family: str, architecture: Any) -> list[Entry]:
        """The mapping for a model of one of `families`; all its parameters must be named.

        Args:
            family: a key of `registry.FAMILIES`.
            architecture: the family's config dataclass.

        Raises:
            UserError: the format cannot hold such a model.
        """

    def view(self, file: TensorFile, family: str, architecture: Any) -> TensorFile:
        """The file under the names of `entries`, where the library has several for the same.

        Args:
            file: of this format.
            family: of the model to load, a key of `registry.FAMILIES`.
            architecture: the family's config dataclass.
        """
        del family, architecture
        return file

    def constants(self, family: str, architecture: Any) -> dict[str, np.ndarray]:
        """Tensors that the library wants to see and that are no parameters of ours.

        They are written on export. A file may lack them; where it has them, they must be these,
        unless their names are `ignored`.
        """
        del family, architecture
        return {}

    def architecture(
        self, file: TensorFile, config: dict[str, Any] | None
    ) -> tuple[str, Any] | None:
        """(family, config dataclass) read off shapes and settings, or None if they do not tell.

        Args:
            file: of this format.
            config: a `config.json` found beside the weights.
        """
        return None

    def checked_entries(self, family: str, architecture: Any) -> list[Entry]:
        """`entries`, or an error for a family that the format cannot hold."""
        if family not in self.families:
            raise UserError(
                f"the format {self.name} holds models of the family "
                f"{' or '.join(self.families)}; found {family!r}"
            )
        return self.entries(family, architecture)
