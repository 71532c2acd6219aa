"""Architecture and image preprocessing in a model folder of timm."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError, lookup
from vit_jax.inputs import ImageInputs
from vit_jax.models import registry
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD
from vit_jax.weights.containers.tensors import TensorFile

NAME = "timm"
_RESIZES = {"center": "crop", "squash": "squash"}


def describe(
    config: Mapping[str, Any] | None, file: TensorFile
) -> tuple[Any | None, ImageInputs | None]:
    """Returns architecture and image preprocessing of a model folder.

    Args:
        config: content of its `config.json`; None if there is none.
        file: opened weight file, for messages.

    Returns:
        Both; None for what the folder does not state, or for an architecture that is not
        registered.

    Raises:
        UserError: a setting that is not available here.
    """
    config = config or {}
    settings = config.get("pretrained_cfg")
    inputs = None if settings is None else _inputs(settings)
    name = config.get("architecture")
    if name is None:
        return None, inputs
    try:
        spec = registry.model_spec(name)
    except UserError:
        return None, inputs
    architecture = spec.architecture
    if spec.inputs.is_naflex and inputs is not None:
        # The folder states the size of a square image, which timm's evaluation does not use.
        inputs = dataclasses.replace(
            spec.inputs, mean=inputs.mean, std=inputs.std, interpolation=inputs.interpolation
        )
        return _with_pool(architecture, config, file), inputs
    arguments = {k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"}
    size = arguments.pop("img_size", None)
    if arguments:
        raise UserError(
            f"{file.path.with_name('config.json')}: expected model_args with img_size at most; "
            f"found {', '.join(arguments)}"
        )
    architecture = _with_pool(architecture, config, file)
    if size is None and settings is not None and "input_size" in settings:
        size = settings["input_size"][1:]
    if size is not None:
        size = size if isinstance(size, int) else (size[0], size[1])
        changes = {"image_size": size}
        architecture = registry.parse_architecture(changes, name, base=architecture)
    return architecture, inputs


def _with_pool(architecture: Any, config: Mapping[str, Any], file: TensorFile) -> Any:
    """Refuses another pooling than that of the registered model, except in DINOv3."""
    if getattr(architecture, "position_init", None) == "rotary":
        # timm averages the normalised patches by default, the authors read the class token.
        pools = {"avg": "mean", "token": "class"}
        found = config.get("global_pool") or "avg"
        chosen = lookup(pools, found, "global_pool of timm's DINOv3")
        return dataclasses.replace(architecture, pool=chosen)
    pool = getattr(architecture, "pool", None)
    expected = {"class": "token", "map": "map", "mean": "avg", "mean_norm": "avg"}.get(pool or "")
    found = config.get("global_pool") or expected
    if expected is not None and found != expected:
        raise UserError(
            f"{file.path.with_name('config.json')}: expected global_pool {expected!r}, that of the "
            f"registered model; found {found!r}"
        )
    return architecture


def _inputs(settings: Mapping[str, Any]) -> ImageInputs:
    """Preprocessing of `pretrained_cfg`; absent values are the library's defaults."""
    _, height, width = settings.get("input_size", (3, 224, 224))
    return ImageInputs(
        size=(height, width),
        resize=lookup(_RESIZES, settings.get("crop_mode") or "center", "crop_mode of timm"),
        crop_fraction=settings.get("crop_pct") or 0.875,
        interpolation=settings.get("interpolation", "bicubic"),
        mean=tuple(settings.get("mean", IMAGENET_MEAN)),
        std=tuple(settings.get("std", IMAGENET_STD)),
    )
