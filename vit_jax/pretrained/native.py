"""The library's own format: `NAME.safetensors` and `NAME.json` beside it.

Tensors are named by the paths of the parameters. The JSON file describes what the tensors do not:
architecture, image preprocessing and tokenizer. The weights can be used without the run that made
them.
"""

import dataclasses
import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vit_jax.atomic_files import write_text
from vit_jax.components import parse
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.registry import describe, parse_architecture
from vit_jax.models.spec import ModelSpec
from vit_jax.paths import StrPath, as_path
from vit_jax.weights import loading, mapping
from vit_jax.weights.containers.reading import open_weights, read_json
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.containers.writing import write_tensors
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.transforms import Shape

if TYPE_CHECKING:
    from etils import epath

NAME = "vit_jax"
VERSION = 2
DEFAULT_NAME = "model.safetensors"  # name of the tensors in a folder
_BESIDE = "saved:{}"  # spec of a tokenizer that is saved in a folder


class Native(Format):
    """Paths of the parameters as names, for any model."""

    name = NAME
    architectures = (object,)
    metadata = MappingProxyType({"format": NAME})
    heads = ("head/*", "distillation_head/*", "head_norm/*")

    def matches(self, file: TensorFile) -> bool:
        """Returns whether the header of a file names this format."""
        return file.metadata.get("format") == NAME

    def entries(self, architecture: Any) -> list[Entry]:
        """Returns the identity mapping; see `Format.entries`.

        Tables of files of another resolution are resized as for fine-tuning, by the method `adapt`
        of the image tower's architecture.
        """
        paths = traverse_util.flatten_dict(ModelDef(architecture).shapes(), sep="/")
        return [Entry(path, path, resize=_adapt(architecture, path)) for path in paths]


@dataclasses.dataclass(frozen=True)
class _Adapt:
    """Resizing of a parameter by the architecture that it belongs to.

    Attributes:
        tower: architecture of the tower of the model.
        path: path of the parameter in the tower.
        source: architecture of the tower that the file was saved for, if known.
    """

    tower: Any
    path: str
    source: Any = None

    @property
    def hint(self) -> str:
        """Where the resolution of the table is stated."""
        return "the description beside the weights has their resolution"

    def resized_from(self, source: "_Adapt") -> Self:
        """Returns the same resizing for parameters of the architecture of `source`."""
        return dataclasses.replace(self, source=source.tower)

    def accepts(self, found: Shape, expected: Shape) -> bool:
        """Returns whether the architecture can resize shape `found` to shape `expected`."""
        if self.source is None:
            return False
        value = jax.ShapeDtypeStruct(found, jnp.float32)
        adapted = jax.eval_shape(lambda x: self.tower.adapt(self.path, x, self.source), value)
        return adapted is not None and adapted.shape == expected

    def __call__(self, table: np.ndarray, expected: Shape) -> np.ndarray:
        """Resizes a parameter."""
        del expected
        if self.source is None or self.source == self.tower:
            return table
        adapted = self.tower.adapt(self.path, jnp.asarray(table), self.source)
        return table if adapted is None else np.asarray(adapted)


def _adapt(architecture: Any, path: str) -> _Adapt | None:
    """Resizing of a parameter by its tower, or by the model itself; None if there is no rule."""
    name, _, inner = path.partition("/")
    tower = getattr(architecture, name, None) if name in ("image", "text") else None
    if tower is None:
        tower, inner = architecture, path
    return _Adapt(tower, inner) if hasattr(tower, "adapt") else None


def save(path: StrPath, params: Params, spec: ModelSpec, dtype: str = "float32") -> None:
    """Writes weights and their description, each file atomically.

    Args:
        path: path of the safetensors file, or a folder, in which it is named `model.safetensors`.
        params: parameters of the model.
        spec: architecture, image preprocessing and tokenizer.
        dtype: compute dtype that the model was used with, for information.
    """
    file = tensor_path(path)
    entries = Native().entries(spec.architecture)
    write_tensors(file, mapping.export(entries, params), metadata=Native.metadata)
    described = {
        "format": NAME,
        "version": VERSION,
        "architecture": describe(spec.architecture),
        "inputs": dataclasses.asdict(spec.inputs),
        "tokenizer": _save_tokenizer(spec, file.parent),
        "dtype": dtype,
    }
    write_text(file.with_suffix(".json"), json.dumps(described, indent=2) + "\n")


def is_described(path: StrPath) -> bool:
    """Returns whether weights have a description of this format beside them.

    Args:
        path: weight file or folder.
    """
    file = as_path(path)
    return (file / DEFAULT_NAME if file.is_dir() else file).with_suffix(".json").is_file()


def load_spec(path: StrPath) -> ModelSpec:
    """Reads architecture, image preprocessing and tokenizer of saved weights.

    Args:
        path: weight file or folder, as given to `save`.

    Raises:
        UserError: there is no description, or it has another format or an unknown version.
    """
    file = tensor_path(path).with_suffix(".json")
    if not file.is_file():
        raise UserError(f"{file}: expected the description of the weights beside them; found none")
    described = read_json(file)
    found = (described.get("format"), described.get("version"))
    if found not in ((NAME, 1), (NAME, VERSION)):
        raise UserError(f"{file}: expected format {NAME!r}, version {VERSION} or 1; found {found}")
    try:
        if found == (NAME, 1):
            described = _from_version_1(described)
        architecture, tokenizer = described["architecture"], described["tokenizer"]
        inputs = described["inputs"]
    except KeyError as error:
        raise UserError(f"{file}: expected the key {error}; found {list(described)}") from None
    if tokenizer == _BESIDE.format("."):
        tokenizer = _BESIDE.format(file.parent)
    return ModelSpec(
        architecture=parse_architecture(architecture, "architecture"),
        inputs=parse(ImageInputs, inputs, "inputs"),
        tokenizer=tokenizer,
    )


def load(path: StrPath, shardings: Any = None) -> tuple[ModelSpec, Params]:
    """Loads saved weights and their description.

    Args:
        path: weight file or folder, as given to `save`.
        shardings: tree of shardings like the parameters; None for the default device.

    Raises:
        UserError: see `load_spec`; or the tensors do not fit the architecture.
    """
    spec = load_spec(path)
    file = open_weights(tensor_path(path))
    model = ModelDef(spec.architecture)
    return spec, loading.load(file, model, Native(), shardings=shardings)


def tensor_path(path: StrPath) -> "epath.Path":
    """Returns the safetensors file of a path: the path itself, or the file in a folder.

    Args:
        path: weight file or folder.

    Raises:
        UserError: the path has another suffix.
    """
    file = as_path(path)
    if file.is_dir() or not file.suffix:
        return file / DEFAULT_NAME
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: expected a name ending in .safetensors, or a folder")
    return file


def _from_version_1(described: dict[str, Any]) -> dict[str, Any]:
    """A description of version 0.1 of this library under the names of today."""

    def renamed(fields: dict[str, Any]) -> dict[str, Any]:
        return {
            {"family": "architecture"}.get(key, key): renamed(value)
            if isinstance(value, dict)
            else value
            for key, value in fields.items()
        }

    inputs = dict(described["preprocess"])
    inputs["crop_fraction"] = inputs.pop("crop_pct")
    return {**described, "architecture": renamed(described["architecture"]), "inputs": inputs}


def _save_tokenizer(spec: ModelSpec, directory: "epath.Path") -> str | None:
    """Returns the tokenizer's spec; a vocabulary in a file is copied to the directory."""
    if spec.tokenizer is None or ":" not in spec.tokenizer:
        return spec.tokenizer
    text = spec.architecture.text
    tokenizer = open_tokenizer(
        spec.tokenizer, vocab_size=text.vocab_size, context_length=text.context_length
    )
    tokenizer.save(directory)
    return _BESIDE.format(".")
