"""ResNet v1.5 classifiers (He et al. 2016)."""

from vit_jax.inputs import ImageInputs
from vit_jax.models.resnet.model import ResNetConfig
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec


def _resnet(*depths: int) -> ModelSpec:
    """ImageNet-1k classifier with the preprocessing of torchvision's weights."""
    return ModelSpec(
        architecture=ResNetConfig(depths=depths, num_classes=1000),
        inputs=ImageInputs(
            crop_fraction=0.875, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
    )


# He et al. 2016, table 1.
MODELS: dict[str, ModelSpec] = {
    "resnet50": _resnet(3, 4, 6, 3),
    "resnet101": _resnet(3, 4, 23, 3),
}

# timm's names of torchvision's weights; microsoft/resnet-50 is another spelling.
ALIASES: dict[str, str] = {"resnet50.tv_in1k": "resnet50", "resnet101.tv_in1k": "resnet101"}
