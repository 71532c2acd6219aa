"""Weights of OWL-ViT and OWLv2 in the formats of other libraries."""

from vit_jax.models.owl.weights.scenic import ScenicOwl
from vit_jax.models.owl.weights.transformers import TransformersOwl
from vit_jax.weights.format import Format

FORMATS: tuple[Format, ...] = (TransformersOwl(), ScenicOwl())
