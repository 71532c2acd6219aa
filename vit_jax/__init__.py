"""Vision transformers and CLIP in JAX."""

from typing import Any

__version__ = "0.2.0"
__all__ = ["create_model", "list_models"]


def __getattr__(name: str) -> Any:
    # On demand, so that a command answers a mistyped flag before it imports JAX.
    if name not in __all__:
        raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")
    from vit_jax.pretrained import model as pretrained

    return getattr(pretrained, name)
