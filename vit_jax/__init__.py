"""Vision transformers and CLIP in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.pretrained.listing import list_models
    from vit_jax.pretrained.model import create_model

__version__ = "0.2.0"
__all__ = ["create_model", "list_models"]

_MODULES = {
    "create_model": "vit_jax.pretrained.model",
    "list_models": "vit_jax.pretrained.listing",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that a command reports a wrong flag before it imports JAX.
    if name not in _MODULES:
        raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
