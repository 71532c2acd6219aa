"""Weights of ViT, DeiT, DINO, AIMv2 and the encoder of MAE in the formats of other libraries."""

from vit_jax.models.vit.weights.aimv2 import TimmAIMv2, TransformersAIMv2
from vit_jax.models.vit.weights.big_vision import BigVisionScannedViT, BigVisionViT
from vit_jax.models.vit.weights.dinov2 import OfficialDINOv2
from vit_jax.models.vit.weights.dinov3 import OfficialDINOv3, TimmDINOv3, TransformersDINOv3
from vit_jax.models.vit.weights.timm import TimmNaFlexViT, TimmViT
from vit_jax.models.vit.weights.transformers import FlaxViT, TransformersViT
from vit_jax.models.vit.weights.vit_jax import ViTJaxNpz
from vit_jax.weights.format import Format

FORMATS: tuple[Format, ...] = (
    TimmViT(),
    TimmNaFlexViT(),
    OfficialDINOv2(),
    TransformersViT(),
    FlaxViT(),
    OfficialDINOv3(),
    TimmDINOv3(),
    TransformersDINOv3(),
    TimmAIMv2(),
    TransformersAIMv2(),
    BigVisionViT(),
    BigVisionScannedViT(),
    ViTJaxNpz(),
)
