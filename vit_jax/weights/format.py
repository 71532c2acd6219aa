"""Base class of weight formats."""

import abc
import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry

# Key of the header of exported files of models whose rule is not that of the format.
RESIZE_KEY = "position_resize"
# Fields of towers that `Format.settle` sets to how the library resizes positions.
RESIZE_FIELDS = (RESIZE_KEY, "position_grid")


class Format(abc.ABC):
    """How a library names and stores the parameters of an architecture.

    A library that has several architectures has one subclass per architecture, all with the same
    `name`. They are listed as `FORMATS` in the module `weights` of each architecture's package.

    Attributes:
        name: name of the library, as users type it.
        architectures: config dataclasses of the models that the format can hold.
        ignored: patterns (`fnmatch`) of tensors that are not parameters: buffers and settings.
        unrelated: patterns of tensors that belong to another model in the same file, as the
            language model that reads the features of a tower. They stay unread.
        description: name of the JSON file beside the weights that describes the architecture.
        position_resize: rule by which the library resizes tables of positions for other images,
            see `models.layers.grids`.
        heads: patterns of the tensors of a classification head, which a model of another number
            of classes does not read.
        container: file type for export, "safetensors", "npz" or "msgpack".
        root: key of the tensors in exported msgpack files; "" for the top.
        metadata: header of exported safetensors files. Transformers requires the default.
    """

    name: ClassVar[str]
    architectures: ClassVar[tuple[type, ...]]
    ignored: ClassVar[tuple[str, ...]] = ()
    unrelated: ClassVar[tuple[str, ...]] = ()
    description: ClassVar[str] = "config.json"
    heads: ClassVar[tuple[str, ...]] = ()
    position_resize: ClassVar[str] = ""
    container: ClassVar[str] = "safetensors"
    root: ClassVar[str] = ""
    metadata: ClassVar[Mapping[str, str]] = MappingProxyType({"format": "pt"})

    @abc.abstractmethod
    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has this format, judged by the names of its tensors."""

    def holds(self, architecture: Any) -> bool:
        """Returns whether an architecture has this layout among those of its library.

        A library may lay out models of one dataclass in several ways, each of which is a format.

        Args:
            architecture: config dataclass of a model, one of `architectures`.
        """
        del architecture
        return True

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

    def written(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns tensors under the names of an exported file, the inverse of `view`.

        Args:
            tensors: tensors under the names of `entries` and `constants`.
        """
        return dict(tensors)

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

        These are settings without a tensor of their own: the rule by which positions are resized,
        and the activation of OpenAI's weights.

        Args:
            architecture: config dataclass of the model.
            file: file of this format.
        """
        rule = file.metadata.get(RESIZE_KEY) or self.resize_rule(architecture)
        if not rule:
            return architecture
        if hasattr(architecture, "image"):
            image = _with_rule(architecture.image, rule)
            return dataclasses.replace(architecture, image=image)
        return _with_rule(architecture, rule)

    def resize_rule(self, architecture: Any) -> str:
        """Returns the rule by which the library resizes the positions of a model; "" for none.

        Args:
            architecture: config dataclass of the model.
        """
        del architecture
        return self.position_resize


def _with_rule(tower: Any, rule: str) -> Any:
    """A tower with a rule, and with the grid of its fixed positions, which the rule resizes."""
    changes: dict[str, Any] = {}
    if hasattr(tower, "position_resize"):
        changes["position_resize"] = rule
    if getattr(tower, "position_init", None) == "fixed_sincos":
        changes["position_grid"] = tower.position_grid or tower.grid
    return dataclasses.replace(tower, **changes) if changes else tower
