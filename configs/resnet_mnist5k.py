"""ResNet in place of the ViT of `vit_mnist5k.py`: 97.9% after 20 epochs. It teaches the DeiT.

python -m vit_jax.train --config configs/resnet_mnist5k.py --workdir runs/resnet_mnist5k
"""

from ml_collections import ConfigDict

from configs import vit_mnist5k
from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of the ViT with another model."""
    config = vit_mnist5k.get_config()
    with config.unlocked():
        config.model = default_config(model="resnet50").model
    config.model.update(image_size=28, width=16, depths=(1, 1, 1, 1), num_classes=10)
    config.total_epochs = 20.0
    return config
