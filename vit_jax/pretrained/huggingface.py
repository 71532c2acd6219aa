"""Image preprocessing and tokenizer in the folder of a Hugging Face model."""

import pathlib
from typing import Any

from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.spec import ModelSpec
from vit_jax.weights.containers.reading import read_json

PREPROCESSOR = "preprocessor_config.json"
# Resampling filters by the number that PIL gives them.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


def read_spec(folder: pathlib.Path, architecture: Any) -> ModelSpec:
    """Returns the spec of a model whose weights are in a folder.

    Args:
        folder: folder with a `preprocessor_config.json`, and for text a `spiece.model` if the
            tokenizer is not CLIP's.
        architecture: architecture of the model.

    Raises:
        UserError: there is no `preprocessor_config.json`, or it contains an unsupported setting.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise UserError(
            f"{folder} has no {PREPROCESSOR}, so that the image preprocessing is unknown; name the "
            "model"
        )
    return ModelSpec(
        architecture=architecture,
        inputs=_inputs(read_json(path), path),
        tokenizer=_tokenizer(folder, architecture),
    )


def _inputs(found: dict[str, Any], path: pathlib.Path) -> ImageInputs:
    resample = found.get("resample", 3)
    if resample not in _INTERPOLATIONS:
        raise UserError(f"{path}: expected resample 2 or 3; found {resample}")
    resize, crop_fraction = "squash", 1.0
    if found.get("do_center_crop", False):
        edge, crop = (_side(found.get(key, 224)) for key in ("size", "crop_size"))
        resize, crop_fraction = "crop", crop / edge
    return ImageInputs(
        resize=resize,
        crop_fraction=crop_fraction,
        interpolation=_INTERPOLATIONS[resample],
        mean=tuple(found["image_mean"]),
        std=tuple(found["image_std"]),
    )


def _side(size: int | dict[str, int]) -> int:
    """Side of an image: older files contain a number, newer ones a shortest edge or a height."""
    return size if isinstance(size, int) else size.get("shortest_edge", size.get("height", 224))


def _tokenizer(folder: pathlib.Path, architecture: Any) -> str | None:
    if not hasattr(architecture, "text"):
        return None
    model = folder / "spiece.model"
    return f"sentencepiece:{model}" if model.is_file() else "clip"
