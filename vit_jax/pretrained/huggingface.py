"""Image preprocessing in the folder of a Hugging Face model.

A value of the folder is used. A value that it leaves out is the default of the image processor that
it names, or of its model type. A value that neither determines is an error.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.inputs import NAFLEX, ImageInputs
from vit_jax.inputs.patches import size_of_budget
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from vit_jax.weights.containers.reading import read_json

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
# Resampling filters by the number that PIL gives them.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
_SQUARE = {**_HALF, "do_center_crop": False, "size": {"height": 224, "width": 224}}
_CROPPED = {
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "do_center_crop": True,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
}
_DETECTION = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_center_crop": False}
# Documented defaults of the library's image processors, by their names without "ImageProcessor".
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "CLIP": _CROPPED,
    "Bit": _CROPPED,
    "Llava": _CROPPED,
    "ViT": {**_SQUARE, "resample": 2},
    "Siglip": {**_SQUARE, "resample": 3},
    "Siglip2": {**_HALF, "resample": 2, "patch_size": 16, "max_num_patches": 256},
    "DINOv3ViT": {
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "do_center_crop": False,
        "size": {"height": 224, "width": 224},
        "resample": 2,
    },
    "DeiT": {**_CROPPED, **_HALF, "size": {"height": 256, "width": 256}},
    "OwlViT": {**_DETECTION, "size": {"height": 768, "width": 768}, "resample": 3},
    "Owlv2": {**_DETECTION, "size": {"height": 960, "width": 960}, "resample": 2, "do_pad": True},
    "GroundingDino": {
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "do_center_crop": False,
        "size": {"shortest_edge": 800, "longest_edge": 1333},
        "resample": 2,
        "do_pad": True,
    },
    "Sam": {
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "do_center_crop": False,
        "size": {"longest_edge": 1024},
        "pad_size": {"height": 1024, "width": 1024},
        "resample": 2,
        "do_pad": True,
    },
}
# Image processors of the model types.
_OF_MODELS = {
    "clip": "CLIP",
    "metaclip_2": "CLIP",
    "llava": "Llava",
    "siglip": "Siglip",
    "siglip2": "Siglip2",
    "vit": "ViT",
    "vit_mae": "ViT",
    "swin": "ViT",
    "deit": "DeiT",
    "dinov2": "Bit",
    "owlvit": "OwlViT",
    "owlv2": "Owlv2",
    "grounding-dino": "GroundingDino",
    "clipseg": "ViT",
    "dinov2_with_registers": "Bit",
    "dinov3_vit": "DINOv3ViT",
    "aimv2": "CLIP",
    "aimv2_vision_model": "CLIP",
    "sam": "Sam",
}
# Settings that have the same default in all image processors, and their only value here.
_FIXED = {"do_resize": True, "do_rescale": True, "do_pad": False}


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Settings of an image processor.

    Attributes:
        path: file of the settings, for messages.
        stated: values in the file.
        defaults: defaults of the image processor; empty if it is unknown.
        kind: name of the image processor or of the model type.
    """

    path: pathlib.Path
    stated: Mapping[str, Any]
    defaults: Mapping[str, Any]
    kind: str

    def __getitem__(self, key: str) -> Any:
        value = self.stated.get(key)
        if value is None:
            value = self.defaults.get(key)
        if value is None:
            raise UserError(
                f"{self.path}: expected {key}; found none, and the default of the image processor "
                f"{self.kind!r} is unknown (known: {', '.join(PROCESSORS)}); add {key} to the file"
            )
        return value


def read_inputs(folder: pathlib.Path, model_type: str) -> ImageInputs | None:
    """Returns the image preprocessing of a model folder.

    Args:
        folder: folder with a `preprocessor_config.json`, or with a `processor_config.json` as
            transformers 5 writes it.
        model_type: `model_type` of its `config.json`, "" if there is none.

    Returns:
        The preprocessing with the size of its crop; None if the folder has neither file.

    Raises:
        UserError: a setting that is missing, contradicts another one or is not available here.
    """
    settings = _read(folder, model_type)
    if settings is None:
        return None
    for key, default in _FIXED.items():
        expected = settings.defaults.get(key, default)
        if key == "do_pad" and settings.kind == "Llava":
            continue
        if settings.stated.get(key, expected) is not expected:
            raise UserError(
                f"{settings.path}: expected {key}={expected}; found {settings.stated[key]!r}"
            )
    if not math.isclose(factor := settings.stated.get("rescale_factor", 1 / 255), 1 / 255):
        raise UserError(f"{settings.path}: expected rescale_factor 1/255; found {factor}")
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings.stated.get("do_normalize", True):
        mean, std = (_channels(settings, f"image_{name}") for name in ("mean", "std"))
    return ImageInputs(
        **_geometry(settings),
        interpolation=_interpolation(settings),
        mean=mean,
        std=std,
    )


def _read(folder: pathlib.Path, model_type: str) -> _Settings | None:
    """Settings of the image processor; those within a `processor_config.json` take precedence."""
    for name in (PROCESSOR, PREPROCESSOR):
        path = folder / name
        found = read_json(path) if path.is_file() else None
        if found is not None and name == PROCESSOR:
            found = found.get("image_processor")
        if found is not None:
            kind = found.get("image_processor_type") or found.get("feature_extractor_type") or ""
            for suffix in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
                kind = kind.removesuffix(suffix)
            kind = kind or _OF_MODELS.get(model_type, model_type)
            return _Settings(path, found, PROCESSORS.get(kind, {}), kind)
    return None


def _channels(settings: _Settings, key: str) -> tuple[float, float, float]:
    values = settings[key]
    if len(values) != 3:
        raise UserError(f"{settings.path}: expected three values of {key}; found {values}")
    red, green, blue = map(float, values)
    return red, green, blue


def _interpolation(settings: _Settings) -> str:
    if (resample := settings["resample"]) not in _INTERPOLATIONS:
        raise UserError(f"{settings.path}: expected resample 2 or 3; found {resample}")
    return _INTERPOLATIONS[resample]


def _geometry(settings: _Settings) -> dict[str, Any]:
    """Size, resize mode and crop fraction."""
    if settings.kind == "Siglip2":
        patch_size = settings["patch_size"]
        budget = size_of_budget(settings["max_num_patches"], patch_size)
        return {"resize": NAFLEX, "size": budget, "patch_size": patch_size}
    size, has_crop = settings["size"], settings["do_center_crop"]
    if isinstance(size, list):  # older files of OWL-ViT
        size = {"height": size[0], "width": size[1]}
    if isinstance(size, int):  # older files
        edge = "shortest_edge" in settings.defaults.get("size", {}) or (
            not settings.defaults and has_crop
        )
        size = {"shortest_edge": size} if edge else {"height": size, "width": size}
    crop = settings["crop_size"] if has_crop else None
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if size.keys() == {"height", "width"}:
        resized = size["height"], size["width"]
        if settings.defaults.get("do_pad"):
            return {"resize": "corner", "size": resized}
        cropped = resized if crop is None else (crop["height"], crop["width"])
        return _crop(settings, "squash", cropped, resized)
    if size.keys() == {"shortest_edge", "longest_edge"} and not has_crop:
        return {
            "resize": "fit",
            "shortest_edge": size["shortest_edge"],
            "size": (size["longest_edge"],) * 2,
        }
    if size.keys() == {"longest_edge"} and not has_crop:
        square = {"height": size["longest_edge"], "width": size["longest_edge"]}
        if (padded := settings["pad_size"]) != square:
            raise UserError(f"{settings.path}: expected pad_size={square}; found {padded}")
        return {"resize": "longest", "size": (size["longest_edge"],) * 2}
    if size.keys() == {"shortest_edge"} and crop and crop["height"] == crop["width"]:
        side = crop["height"]
        padded = settings.kind == "Llava" and settings.stated.get("do_pad")
        resize = "square" if padded else "crop"
        return _crop(settings, resize, (side, side), (size["shortest_edge"],) * 2)
    raise UserError(
        f"{settings.path}: expected a size with height and width, or a size with shortest_edge and "
        f"a square center crop; found size={size}, crop_size={crop}"
    )


def _crop(
    settings: _Settings, resize: str, size: tuple[int, int], resized: tuple[int, int]
) -> dict[str, Any]:
    """Fields of `ImageInputs` for an image that is resized, and then cropped to a size."""
    fraction = size[0] / resized[0]
    if math.floor(size[0] / fraction) != resized[0]:  # the division was rounded up
        fraction = math.nextafter(fraction, 0)
    found = tuple(math.floor(side / fraction) for side in size)
    if fraction > 1 or found != resized:
        raise UserError(
            f"{settings.path}: expected a crop that is at most as large as the resized image, and "
            f"of its shape; found {size[0]} x {size[1]} of {resized[0]} x {resized[1]}"
        )
    return {"resize": resize, "size": size, "crop_fraction": fraction}
