"""CLIPSeg: masks by words or by an example image (Lüddecke and Ecker 2022)."""

from vit_jax.models.clipseg.model import CLIPSegConfig as CONFIG
from vit_jax.models.clipseg.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
