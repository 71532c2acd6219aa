"""Attention: one function per use, several implementations behind it."""

from vit_jax.models.ops.attention.dot_product import ATTENTION, attention
from vit_jax.models.ops.attention.projected import self_attention

__all__ = ["ATTENTION", "attention", "self_attention"]
