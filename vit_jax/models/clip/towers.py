"""The image towers: what a classifier is and what stands in a pair with a text tower."""

from typing import Any

from vit_jax.models.clip.resnet import CLIPResNet, CLIPResNetConfig
from vit_jax.models.resnet.model import ResNet, ResNetConfig
from vit_jax.models.swin.model import Swin, SwinConfig
from vit_jax.models.vit.model import ViT, ViTConfig

ImageTowerConfig = ViTConfig | SwinConfig | ResNetConfig | CLIPResNetConfig

# Name in configs -> the class and the dataclass that describes it.
TOWERS: dict[str, tuple[type, type]] = {
    "vit": (ViT, ViTConfig),
    "swin": (Swin, SwinConfig),
    "resnet": (ResNet, ResNetConfig),
    "clip_resnet": (CLIPResNet, CLIPResNetConfig),
}


def build_tower(config: ImageTowerConfig, **execution: Any) -> Any:
    """The module that a config dataclass describes; `execution`: rngs, dtype, scan, remat."""
    module = next(m for m, config_class in TOWERS.values() if isinstance(config, config_class))
    return module(config, **execution)
