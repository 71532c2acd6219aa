"""ResNet on 4,000 handwritten digits: `vit_mnist5k.py` with another model.

    python -m vit_jax.train --config configs/resnet_mnist5k.py --workdir runs/resnet_mnist5k

Result: 97.9% top-1 after 20 epochs. It is the teacher of `deit_mnist5k.py`.
Time: a few minutes on two CPU cores. Needs the extra [samples].
"""

from ml_collections import ConfigDict

from . import vit_mnist5k


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of the ViT with another model."""
    config = vit_mnist5k.get_config(arg)
    config.model = {
        "name": "resnet50",
        "image_size": 28,
        "width": 16,
        "depths": (1, 1, 1, 1),
        "num_classes": 10,
        "inputs": {"crop_fraction": 1.0, "interpolation": "bicubic"},
    }
    config.total_epochs = 20.0
    return config
