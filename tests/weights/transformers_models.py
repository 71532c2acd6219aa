"""Architectures of the reference models of transformers.

As in tests/fixtures/generators/make_transformers.py.
"""

import dataclasses
import math

from vit_jax.models.bert.model import BertConfig
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.clip_text.model import CLIPTextConfig
from vit_jax.models.clipseg.model import CLIPSegConfig
from vit_jax.models.grounding_dino.model import GroundingDinoConfig
from vit_jax.models.llava.model import LlavaConfig
from vit_jax.models.mae.model import MAEConfig
from vit_jax.models.owl.model import OwlConfig
from vit_jax.models.sam.encoder import SamEncoderConfig
from vit_jax.models.sam.model import SamConfig
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.vit.model import ViTConfig

STACK = {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 24}
IMAGE = {**STACK, "image_size": 16, "patch_size": 4, "position_resize": "bicubic"}
VIT = ViTConfig(**IMAGE, norm_epsilon=1e-12, num_classes=5)
DINOV2 = ViTConfig(**{**IMAGE, "mlp_dim": 32}, layer_scale=0.5)
AIMV2 = {
    "activation": "silu",
    "gated_mlp": True,
    "qkv_bias": "none",
    "use_bias": False,
    "norm": "rms",
    "norm_epsilon": 1e-5,
    "patch_norm": True,
    "class_token": False,
    "pool": "mean",
}
TEXT = {
    "vocab_size": 50,
    "context_length": 9,
    "width": 12,
    "depth": 2,
    "num_heads": 3,
    "mlp_dim": 20,
}
CLIP = CLIPConfig(
    image=ViTConfig(
        **IMAGE,
        activation="quick_gelu",
        norm_epsilon=1e-5,
        pre_norm=True,
        patch_bias=False,
        weight_init="clip",
    ),
    text=TextConfig(**TEXT),
    embed_dim=10,
)
SIGLIP = CLIPConfig(
    image=ViTConfig(
        **IMAGE, activation="gelu_tanh", class_token=False, pool="map", weight_init="xavier"
    ),
    text=TextConfig(
        **TEXT,
        activation="gelu_tanh",
        norm_epsilon=1e-6,
        causal=False,
        pool="last",
        weight_init="xavier",
    ),
    embed_dim=16,
    image_projection=False,
    text_projection_bias=True,
    init_logit_scale=math.log(10.0),
    init_logit_bias=-10.0,
)
CLIP_TEXT = CLIPTextConfig(text=CLIP.text)
LLAVA = LlavaConfig(image=CLIP.image, width=12)
MAE = MAEConfig(
    image=dataclasses.replace(
        VIT,
        num_classes=0,
        position_init="fixed_sincos",
        position_grid=(4, 4),
        weight_init="xavier",
    ),
    decoder_width=8,
    decoder_depth=3,
    decoder_num_heads=2,
    decoder_mlp_dim=24,
)
SWIN = SwinConfig(
    image_size=32,
    width=8,
    depths=(3, 2),
    num_heads=(2, 4),
    window_size=4,
    mlp_ratio=2.0,
    num_classes=5,
    position_resize="bicubic",
)
OWLVIT = OwlConfig(
    image=CLIP.image, text=TextConfig(**TEXT, position_resize="cut"), embed_dim=TEXT["width"]
)
CLIPSEG = CLIPSegConfig(
    image=CLIP.image,
    text=CLIP.text,
    embed_dim=10,
    layers=(0, 2),
    reduced_width=8,
    decoder_heads=2,
    decoder_mlp_dim=24,
)
GROUNDING_DINO = GroundingDinoConfig(
    image=SwinConfig(
        image_size=1333,
        width=4,
        depths=(1, 3, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_size=3,
        fixed_windows=True,
        final_norm=False,
        mlp_ratio=2.0,
        position_resize="bicubic",
    ),
    text=BertConfig(**{**STACK, "width": 8}, vocab_size=1030, context_length=12, num_positions=12),
    width=32,
    num_queries=6,
    encoder_depth=2,
    decoder_depth=2,
    num_heads=2,
    encoder_mlp_dim=16,
    decoder_mlp_dim=24,
    encoder_samples=2,
    decoder_samples=3,
)
SAM = SamConfig(
    image=SamEncoderConfig(
        image_size=28,
        patch_size=4,
        width=16,
        depth=6,
        num_heads=2,
        mlp_dim=24,
        num_global=2,
        window_size=3,
        out_width=16,
    ),
    mask_width=8,
    num_heads=2,
    mlp_dim=24,
)
ARCHITECTURES = {
    "sam": SAM,
    "grounding_dino": GROUNDING_DINO,
    "owlvit": OWLVIT,
    "owlv2": dataclasses.replace(OWLVIT, objectness=True),
    "clip": CLIP,
    "clipseg": CLIPSEG,
    "clipseg_refined": dataclasses.replace(
        CLIPSEG,
        image=dataclasses.replace(CLIP.image, image_size=32, patch_size=16),
        condition_block=1,
        refined=True,
    ),
    "metaclip2": dataclasses.replace(CLIP, text=dataclasses.replace(CLIP.text, end_id=49)),
    "clip_text": CLIP_TEXT,
    "clip_text_projection": CLIPTextConfig(
        text=dataclasses.replace(CLIP.text, end_id=40), embed_dim=10
    ),
    "llava": LLAVA,
    "siglip": SIGLIP,
    "vit": VIT,
    "vit_bare": dataclasses.replace(VIT, num_classes=0),
    "deit": dataclasses.replace(VIT, distillation=True),
    "dinov2": DINOV2,
    "dinov2_with_registers": dataclasses.replace(
        DINOV2, num_registers=3, position_resize="bicubic_antialias"
    ),
    "deit_one_head": dataclasses.replace(VIT, distillation=True, distillation_head=False),
    "dinov2_giant": dataclasses.replace(
        DINOV2,
        mlp_dim=24,
        num_registers=3,
        position_resize="bicubic_antialias",
        num_classes=5,
        pool="class_mean",
        gated_mlp=True,
        activation="silu",
    ),
    "dinov3": ViTConfig(
        **{**STACK, "image_size": (16, 12), "patch_size": 4},
        layer_scale=0.5,
        num_registers=3,
        norm_epsilon=1e-5,
        position_init="rotary",
        rotary_rescale=2.0,
        gated_mlp=True,
        activation="silu",
        qkv_bias="qv",
    ),
    "aimv2": ViTConfig(
        **{**STACK, "image_size": 16, "patch_size": 4}, **AIMV2, position_init="fixed_sincos"
    ),
    "aimv2_pair": CLIPConfig(
        image=ViTConfig(
            **{**STACK, "image_size": 16, "patch_size": 4}, **{**AIMV2, "pool": "query"}
        ),
        text=TextConfig(
            **TEXT,
            **{key: AIMV2[key] for key in ("activation", "gated_mlp", "qkv_bias", "use_bias")},
            norm="rms",
        ),
        embed_dim=10,
    ),
    "mae": MAE,
    "swin": SWIN,
}
