"""Open-vocabulary detectors: OWL-ViT and OWLv2."""

from vit_jax.models.owl.model import OwlConfig as CONFIG
from vit_jax.models.owl.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
