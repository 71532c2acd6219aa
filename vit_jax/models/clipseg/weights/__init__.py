"""Weights of CLIPSeg in the formats of other libraries."""

from vit_jax.models.clipseg.weights.authors import AuthorsCLIPSeg
from vit_jax.models.clipseg.weights.transformers import TransformersCLIPSeg
from vit_jax.weights.format import Format

FORMATS: tuple[Format, ...] = (TransformersCLIPSeg(), AuthorsCLIPSeg())
