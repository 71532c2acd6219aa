"""Weights in and out of the formats of other libraries.

    params = load_weights("ViT-B-32.pt", model)               # format recognised from its names
    save_weights(params, model, "clip.safetensors", "openai_clip")

From outside in: `files` opens any container (safetensors, npz, torch archives) without executing
anything and hands out tensors one at a time; `formats` holds one module a library, which says
which tensor of theirs is which parameter of ours; `mapping` checks, reads, places and writes by
such a list; `transforms` are the layouts; `native` is the library's own format.

To add a format, write a module in `formats/` and a row in `formats.FORMATS`:

    class Timm(Format):
        name = "timm"                                    # as users type it
        families = ("vit",)
        ignored = ("*.num_batches_tracked",)             # tensors without parameters
        def matches(self, file): return "patch_embed.proj.weight" in file and "cls_token" in file
        def entries(self, family, architecture):
            blocks, layers = "transformer/blocks", range(architecture.depth)
            return [
                *conv("patch_embed", "patch_embed.proj"),
                Entry("class_token", "cls_token", LEADING_ONE),            # (1, 1, D) <-> (1, D)
                Entry("positions", "pos_embed", LEADING_ONE, resize=ResizePositions(grid, 1)),
                *norm(f"{blocks}/norm1", "blocks.{i}.norm1", layers),      # stacked on `layers`
                *linear(f"{blocks}/attention/qkv", "blocks.{i}.attn.qkv", layers),
                ...
            ]

`Entry(paths, keys, transform, layers, resize)` is the whole vocabulary; see `mapping.Entry`,
`transforms` (LINEAR, CONV, FLAT, stack, concatenate, ...) and `formats.torch_layers` (norm, linear,
conv, attention_out). What is not listed shows as an error before anything is loaded: parameters
without a name, tensors missing, unexpected or of another shape. The same list exports. Two more
hooks of `Format`: `view` for libraries that have several names for the same tensor, `constants` for
tensors that they demand and we compute.
"""

import pathlib
from typing import Any

from vit_jax.errors import UserError, lookup
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.registry import architecture_name
from vit_jax.weights import mapping
from vit_jax.weights.checks import check, check_complete, check_constants
from vit_jax.weights.containers.files import TensorFile, open_weights, read_json
from vit_jax.weights.containers.writing import write_tensors
from vit_jax.weights.formats import FORMATS, recognise
from vit_jax.weights.mapping import Entry


def load_weights(
    path: str | pathlib.Path,
    model: ModelDef,
    format: str | None = None,
    shardings: Any = None,
) -> Params:
    """Parameters for a model from a file of any known format.

    Args:
        path: the file, see `files.open_weights`.
        model: whose parameters they are.
        format: a key of `formats.FORMATS`; None recognises it from the tensors' names.
        shardings: tree of shardings like the parameters'; None for the default device.

    Raises:
        UserError: the file cannot be read, its format is unknown or ambiguous, or it does not fit
            the model; then nothing is loaded.
    """
    entries, file, known = _open(path, model, format)
    return mapping.load(entries, file, model.shapes(), shardings, known)


def check_weights(path: str | pathlib.Path, model: ModelDef, format: str | None = None) -> None:
    """Refuses a file that does not fit a model, as `load_weights` does, without reading tensors."""
    entries, file, known = _open(path, model, format)
    shapes = {k: tuple(v.shape) for k, v in mapping.flatten(model.shapes()).items()}
    check(entries, file, shapes, known)


def count_classes(path: str | pathlib.Path, model: ModelDef, format: str | None = None) -> int:
    """Outputs of the head in a file; 0 where it has none.

    Args:
        path: the file, see `files.open_weights`.
        model: of the file, but for the size of its head; it has one.
        format: a key of `formats.FORMATS`; None recognises it from the tensors' names.
    """
    entries, file, _ = _open(path, model, format)
    key = next(entry.keys[0] for entry in entries if entry.paths == ("head/bias",))
    return file.shape(key)[0] if key in file else 0


def _open(
    path: str | pathlib.Path, model: ModelDef, format: str | None
) -> tuple[list[Entry], TensorFile, tuple[str, ...]]:
    """The mapping, the file under its names, and patterns of names that hold no parameter."""
    file = open_weights(path)
    chosen = lookup(FORMATS, format, "format") if format else recognise(file)
    entries = chosen.checked_entries(architecture_name(model.architecture), model.architecture)
    file = chosen.view(file, architecture_name(model.architecture), model.architecture)
    constants = chosen.constants(architecture_name(model.architecture), model.architecture)
    check_constants(file, constants, chosen.ignored)
    return entries, file, (*chosen.ignored, *constants)


def read_architecture(path: str | pathlib.Path, format: str | None = None) -> tuple[str, Any]:
    """Family and architecture of weights, from their shapes and a `config.json` beside them.

    Args:
        path: the file, see `files.open_weights`.
        format: a key of `formats.FORMATS`; None recognises it from the tensors' names.

    Raises:
        UserError: the file does not tell, or tells of a model that this library does not have.
    """
    file = open_weights(path)
    chosen = lookup(FORMATS, format, "format") if format else recognise(file)
    described = file.path.with_name("config.json")
    config = read_json(described) if described.is_file() else None
    found = chosen.architecture(file, config)
    if found is None:
        raise UserError(
            f"{file}: weights of the format {chosen.name} tell no architecture"
            f"{'' if config else f' and there is no {described.name} beside them'}; name the model"
        )
    return found


def save_weights(params: Params, model: ModelDef, path: str | pathlib.Path, format: str) -> None:
    """Writes parameters under another library's names, whole or not at all.

    Args:
        params: of the model.
        model: gives the architecture.
        path: of the new file, with the format's suffix; an existing one is replaced.
        format: a key of `formats.FORMATS`.

    Raises:
        UserError: unknown format, or one that cannot hold the model; another suffix.
    """
    chosen = lookup(FORMATS, format, "format")
    if pathlib.Path(path).suffix != f".{chosen.container}":
        # Other libraries choose how to read a file by its suffix.
        raise UserError(f"{path}: expected a name ending in .{chosen.container} for {format}")
    entries = chosen.checked_entries(architecture_name(model.architecture), model.architecture)
    check_complete(entries, {k: v.shape for k, v in mapping.flatten(params).items()})
    constants = chosen.constants(architecture_name(model.architecture), model.architecture)
    tensors = mapping.export(entries, params) | constants
    write_tensors(path, tensors, chosen.container, chosen.metadata)
