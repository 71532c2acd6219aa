"""Vision transformers and CLIP in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.detection.detect import detect
    from vit_jax.detection.regions import classify_boxes
    from vit_jax.models.clip.consumers import (
        llava_features,
        sdxl_states,
        stable_diffusion_states,
    )
    from vit_jax.pretrained.listing import list_models
    from vit_jax.pretrained.model import create_model
    from vit_jax.segmentation.automatic import generate_masks
    from vit_jax.segmentation.segment import embed_image, segment

__version__ = "0.2.0"
__all__ = [
    "classify_boxes",
    "create_model",
    "detect",
    "embed_image",
    "generate_masks",
    "list_models",
    "llava_features",
    "sdxl_states",
    "segment",
    "stable_diffusion_states",
]

_CONSUMERS = "vit_jax.models.clip.consumers"
_MODULES = {
    "classify_boxes": "vit_jax.detection.regions",
    "create_model": "vit_jax.pretrained.model",
    "detect": "vit_jax.detection.detect",
    "embed_image": "vit_jax.segmentation.segment",
    "generate_masks": "vit_jax.segmentation.automatic",
    "list_models": "vit_jax.pretrained.listing",
    "llava_features": _CONSUMERS,
    "sdxl_states": _CONSUMERS,
    "segment": "vit_jax.segmentation.segment",
    "stable_diffusion_states": _CONSUMERS,
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that a command reports a wrong flag before it imports JAX.
    if name not in _MODULES:
        raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
