"""Image preprocessing and tokenizer in a model folder of open_clip."""

import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError, lookup
from vit_jax.inputs import ImageInputs
from vit_jax.models.sizes import as_size
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD
from vit_jax.pretrained.folder_tokenizer import folder_tokenizer

DESCRIPTION = "open_clip_config.json"
# Ways of fitting an image into the size, by their names in the library. Its "longest" fills with
# black, and "pad" here with white.
_RESIZES = {"shortest": "crop", "squash": "squash"}


def read_inputs(config: Mapping[str, Any] | None) -> ImageInputs | None:
    """Returns the image preprocessing; absent values are the library's defaults.

    Args:
        config: content of the `open_clip_config.json`; None if there is none.

    Raises:
        UserError: a setting that is not available here.
    """
    found = (config or {}).get("preprocess_cfg")
    if found is None:
        return None
    vision = (config or {}).get("model_cfg", {}).get("vision_cfg", {})
    size = found.get("size", vision.get("image_size", 224))
    mode = found.get("resize_mode", "shortest")
    return ImageInputs(
        size=as_size(size if isinstance(size, int) else tuple(size)),
        resize=lookup(_RESIZES, mode, f"resize_mode of {DESCRIPTION}"),
        interpolation=found.get("interpolation", "bicubic"),
        mean=tuple(found.get("mean", CLIP_MEAN)),
        std=tuple(found.get("std", CLIP_STD)),
    )


def read_tokenizer(config: Mapping[str, Any] | None, folder: pathlib.Path) -> str | None:
    """Returns the spec of the tokenizer; None if the folder does not state it.

    Args:
        config: content of the `open_clip_config.json`; None if there is none.
        folder: its folder.

    Raises:
        UserError: a cleaning of texts that is not available here.
    """
    text = (config or {}).get("model_cfg", {}).get("text_cfg")
    if text is None:
        return None
    if text.get("hf_tokenizer_name") is None:
        return "clip"
    if not (folder / "tokenizer.json").is_file():
        return None
    clean = (text.get("tokenizer_kwargs") or {}).get("clean", "whitespace")
    if clean not in ("canonicalize", "lower", "whitespace"):
        raise UserError(f"{DESCRIPTION}: tokenizer_kwargs.clean={clean!r} is not available")
    return folder_tokenizer(folder, "", text.get("vocab_size", 0), clean=clean)
