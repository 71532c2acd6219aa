"""The model of `create_model`, with the changes that the user asks for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.components import parse
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models import registry
from vit_jax.models.spec import ModelSpec
from vit_jax.paths import StrPath
from vit_jax.pretrained.identification import FileModel, resolution, with_image_size
from vit_jax.pretrained.stored import run_spec
from vit_jax.weights.loading import Source


def stored_spec(workdir: StrPath, given: dict[str, Any]) -> ModelSpec:
    """Returns the spec of a run, whose config describes its model.

    Args:
        workdir: folder of the run.
        given: arguments of the user that would change the model.

    Raises:
        UserError: an argument was given.
    """
    if given:
        raise UserError(
            f"{workdir} is the workdir of a run, which is opened as it was trained; found "
            f"{', '.join(f'{key}={value!r}' for key, value in given.items())}. `vit-jax convert "
            "--workdir` writes a weight file, which can be opened in other ways"
        )
    return run_spec(workdir)


def changed_spec(
    spec: ModelSpec,
    changes: dict[str, Any],
    image_size: int | tuple[int, int] | None,
    tokenizer: str | None,
    inputs: Mapping[str, Any] | None,
    title: str,
) -> ModelSpec:
    """Returns a spec with the changes of the user.

    Args:
        spec: spec of the name or of the weights.
        changes: fields of the architecture.
        image_size: side of the images, or their height and width, px; None for that of the spec.
        tokenizer: spec of the tokenizer; None for that of the spec.
        inputs: fields of the image preprocessing.
        title: name of the model in error messages.

    Raises:
        UserError: an unknown field, or a value that does not fit.
    """
    for key, own in {"size": "image_size", "patch_size": "patch_size"}.items():
        if key in (inputs or {}):
            raise UserError(f"inputs.{key} is that of the model: set {own} instead")
    architecture = registry.parse_architecture(changes, title, base=spec.architecture)
    if image_size is not None:
        architecture = with_image_size(architecture, image_size, title)
    return dataclasses.replace(
        spec,
        architecture=architecture,
        tokenizer=tokenizer or spec.tokenizer,
        inputs=parse(ImageInputs, dict(inputs or {}), "inputs", base=spec.inputs),
    )


def stored_source(
    found: FileModel,
    changes: dict[str, Any],
    weights_size: int | tuple[int, int] | None,
    title: str,
) -> Source:
    """Returns the model of the tensors: what the file states, else the changes of the user.

    Args:
        found: model of the weight file.
        changes: fields of the architecture.
        weights_size: size of the images that the weights were trained on, px; None if the file
            states it.
        title: name of the model in error messages.
    """
    stated = found.source.architecture
    architecture = registry.parse_architecture(changes, title, base=stated)
    if weights_size is not None:
        return Source(with_image_size(architecture, weights_size, title), exact=True)
    if found.source.exact:
        architecture = registry.parse_architecture(resolution(stated), title, base=architecture)
    return Source(architecture, found.source.exact)
