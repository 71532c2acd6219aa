"""The library's own format: `NAME.safetensors` with our paths as names and `NAME.json` beside it.

The JSON says what the tensors do not: architecture, activation and epsilons included, preprocessing
and tokenizer. Two files and no code, so that weights can be read without the run that made them.
"""

import dataclasses
import json
import pathlib
from types import MappingProxyType
from typing import Any

from vit_jax.atomic_files import write_text
from vit_jax.components import parse
from vit_jax.data.tokenizers import make_tokenizer
from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.registry import ARCHITECTURES, architecture_name, describe, parse_architecture
from vit_jax.models.spec import ModelSpec
from vit_jax.weights import mapping
from vit_jax.weights.containers.files import TensorFile, open_weights, read_json
from vit_jax.weights.containers.writing import write_tensors
from vit_jax.weights.format import Format
from vit_jax.weights.mapping import Entry

NAME = "vit_jax"
VERSION = 2
# Of the files in a folder.
DEFAULT_NAME = "model.safetensors"
_BESIDE = "saved:{}"  # spec of a tokenizer saved in a directory


class Native(Format):
    """Our own paths as names, for any model."""

    name = NAME
    families = tuple(ARCHITECTURES)
    metadata = MappingProxyType({"format": NAME})

    def matches(self, file: TensorFile) -> bool:
        return file.metadata.get("format") == NAME

    def entries(self, family: str, architecture: Any) -> list[Entry]:
        return [Entry(path, path) for path in mapping.flatten(ModelDef(architecture).shapes())]


def save(path: str | pathlib.Path, params: Params, spec: ModelSpec, dtype: str = "float32") -> None:
    """Writes weights with what is needed to use them, each file whole or not at all.

    Args:
        path: of the safetensors file, or a folder, which gets `model.safetensors`.
        params: of the model.
        spec: architecture, preprocessing and tokenizer.
        dtype: compute type that the model was used with, for the record.
    """
    path = tensor_path(path)
    entries = Native().entries(architecture_name(spec.architecture), spec.architecture)
    write_tensors(path, mapping.export(entries, params), metadata=Native.metadata)
    described = {
        "format": NAME,
        "version": VERSION,
        "architecture": describe(spec.architecture),
        "inputs": dataclasses.asdict(spec.inputs),
        "tokenizer": _save_tokenizer(spec, path.parent),
        "dtype": dtype,
    }
    write_text(path.with_suffix(".json"), json.dumps(described, indent=2) + "\n")


def is_described(path: str | pathlib.Path) -> bool:
    """Whether weights have this format's description beside them."""
    path = pathlib.Path(path)
    return (path / DEFAULT_NAME if path.is_dir() else path).with_suffix(".json").is_file()


def load_spec(path: str | pathlib.Path) -> ModelSpec:
    """Architecture, preprocessing and tokenizer of saved weights.

    Raises:
        UserError: no such file, not of this format, or of a later version.
    """
    path = tensor_path(path).with_suffix(".json")
    if not path.is_file():
        raise UserError(f"{path}: expected the description of the weights beside them; found none")
    described = read_json(path)
    found = (described.get("format"), described.get("version"))
    if found != (NAME, VERSION):
        raise UserError(f"{path}: expected format {NAME!r}, version {VERSION}; found {found}")
    try:
        return ModelSpec(
            architecture=parse_architecture(described["architecture"], "architecture"),
            inputs=parse(ImageInputs, described["inputs"], "inputs"),
            tokenizer=_BESIDE.format(path.parent)
            if described["tokenizer"] == _BESIDE.format(".")
            else described["tokenizer"],
        )
    except KeyError as error:
        raise UserError(f"{path}: expected the key {error}; found {list(described)}") from None


def load(path: str | pathlib.Path, shardings: Any = None) -> tuple[ModelSpec, Params]:
    """Saved weights and what they belong to.

    Args:
        path: as given to `save`.
        shardings: tree of shardings like the parameters'; None for the default device.
    """
    spec = load_spec(path)
    model = ModelDef(spec.architecture)
    file = open_weights(tensor_path(path))
    entries = Native().entries(architecture_name(spec.architecture), spec.architecture)
    return spec, mapping.load(entries, file, model.shapes(), shardings)


def _save_tokenizer(spec: ModelSpec, directory: pathlib.Path) -> str | None:
    """The spec to write down; a vocabulary that lies in some file is copied beside the weights."""
    if spec.tokenizer is None or ":" not in spec.tokenizer:
        return spec.tokenizer
    text = spec.architecture.text
    tokenizer = make_tokenizer(
        spec.tokenizer, vocab_size=text.vocab_size, context_length=text.context_length
    )
    tokenizer.save(directory)
    return _BESIDE.format(".")


def tensor_path(path: str | pathlib.Path) -> pathlib.Path:
    """The safetensors file that a path means: itself, or the default one of a folder.

    Raises:
        UserError: another suffix.
    """
    path = pathlib.Path(path)
    if path.is_dir() or not path.suffix:
        return path / DEFAULT_NAME
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: expected a name ending in .safetensors, or a folder")
    return path
