"""Vision transformers and CLIP in JAX."""

from vit_jax.models.registry import list_models

__all__ = ["list_models"]
