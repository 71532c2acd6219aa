"""A folder that holds a model for inference without this package."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import vit_jax
from vit_jax import workdir as workdir_lib
from vit_jax.atomic_files import atomic_write, write_text
from vit_jax.errors import UserError
from vit_jax.exporting import DESCRIPTION
from vit_jax.exporting.card import Card
from vit_jax.exporting.programs import (
    LABELS,
    Program,
    Weights,
    check_platforms,
    export_program,
    largest_difference,
    programs,
)
from vit_jax.models.registry import describe
from vit_jax.paths import StrPath, as_path
from vit_jax.pretrained.model import PretrainedModel
from vit_jax.weights.containers.writing import write_tensors

FORMAT, VERSION = "vit_jax.export", 1
WEIGHTS, CARD = "weights.npz", "README.md"
SUFFIX = ".stablehlo"


def export_model(
    model: PretrainedModel,
    output: StrPath,
    *,
    name: str,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    labels: Sequence[str] = (),
    licence: str = "",
    workdir: StrPath | None = None,
) -> dict[str, float]:
    """Writes the programs of a model, its weights, their description and a model card.

    Args:
        model: classifier, image encoder or dual encoder.
        output: folder, local or in a bucket; files in it are replaced.
        name: title of the model card.
        platforms: names in `programs.PLATFORMS`, that of this process among them.
        labels: texts that a dual encoder classifies images by.
        licence: SPDX identifier of the weights' licence; empty leaves it out.
        workdir: folder of the run that the model comes from; the card states its config and
            metrics.

    Returns:
        Program -> largest difference between the reloaded program and the model, on random
        examples, relative to the largest value.

    Raises:
        UserError: a model that cannot be exported, one whose tokenizer is missing, or an unknown
            platform.
        MissingPackageError: flatbuffers is not installed.
    """
    check_platforms(platforms)
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here not in platforms:
        raise UserError(
            f"the reloaded programs are compared with the model on {here}: expected it among the "
            f"platforms; found {', '.join(platforms)}"
        )
    found, weights = programs(model, labels)
    reads_text = "encode_text" in found and model.spec.tokenizer
    tokenizer = model.tokenize if reads_text else None  # may need a file: before the programs
    serialised = {
        key: export_program(program, weights, platforms) for key, program in found.items()
    }
    differences = {
        key: largest_difference(program, serialised[key], weights) for key, program in found.items()
    }
    folder = as_path(output)
    for key, content in serialised.items():
        with atomic_write(folder / f"{key}{SUFFIX}") as partial:
            partial.write_bytes(content)
    write_tensors(
        folder / WEIGHTS, {key: np.asarray(x) for key, x in weights.items()}, container="npz"
    )
    description = _description(model, found, weights, platforms, labels)
    if tokenizer is not None:
        tokenizer.save(folder)
        description["tokenizer"] = {"kind": tokenizer.kind, "file": "tokenizer.json"}
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    card = Card(name, description, differences, found["encode_image"].flops(weights), licence)
    write_text(folder / CARD, card.text(None if workdir is None else _run(workdir)))
    return differences


def _description(
    model: PretrainedModel,
    found: dict[str, Program],
    weights: Weights,
    platforms: Sequence[str],
    labels: Sequence[str],
) -> dict[str, Any]:
    """What a caller without this package has to know."""
    description: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "versions": {"vit_jax": vit_jax.__version__, "jax": jax.__version__},
        "architecture": describe(model.spec.architecture),
        "parameters": sum(x.size for key, x in weights.items() if key != LABELS),
        "dtype": model.definition.execution["dtype"],
        "platforms": list(platforms),
        "weights": WEIGHTS,
        "programs": {key: _signature(key, program, weights) for key, program in found.items()},
        "preprocessing": {
            **dataclasses.asdict(model.spec.inputs),
            "alpha": "composited on white",
            "normalization": "((x / 255) - mean) / std, within the program",
        },
    }
    if labels:
        description["labels"] = list(labels)
    return description


def _signature(name: str, program: Program, weights: Weights) -> dict[str, Any]:
    """File, shapes and dtypes of a program."""
    result = jax.eval_shape(program.call, weights, program.random(1))
    return {
        "file": f"{name}{SUFFIX}",
        "input": {"shape": ["batch", *program.shape], "dtype": program.dtype},
        "output": {"shape": ["batch", *result.shape[1:]], "dtype": str(result.dtype)},
    }


def _run(workdir: StrPath) -> dict[str, Any]:
    """Config and last metrics of a run."""
    result = as_path(workdir) / workdir_lib.RESULT_FILE
    return {
        "config": workdir_lib.load_config(workdir).to_dict(),
        "result": json.loads(result.read_text()) if result.is_file() else None,
    }
