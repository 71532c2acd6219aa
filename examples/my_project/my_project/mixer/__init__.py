"""MLP-Mixer: architecture, published sizes, and the names of its parameters in timm."""

from my_project.mixer.model import MixerConfig as CONFIG
from my_project.mixer.zoo import ALIASES, MODELS

__all__ = ["ALIASES", "CONFIG", "MODELS"]
