"""Attention: one function per use, several implementations behind it."""

from vit_jax.models.ops.attention.dot_product import ATTENTION, attention
from vit_jax.models.ops.attention.projected import self_attention
from vit_jax.models.ops.attention.relative import relative_attention

__all__ = ["ATTENTION", "attention", "relative_attention", "self_attention"]
