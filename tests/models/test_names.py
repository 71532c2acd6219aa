"""Names of other libraries and spellings of names."""

import pytest

from vit_jax.errors import UserError
from vit_jax.models import names, registry
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.model import ViTConfig


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        # timm
        ("vit_base_patch16_224", "vit_b16"),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "vit_b16"),
        ("vit_base_patch16_224.mae", "mae_vit_b16_encoder"),
        ("deit_base_distilled_patch16_224", "deit_b16_distilled"),
        ("swin_tiny_patch4_window7_224.ms_in1k", "swin_t"),
        ("vit_base_patch14_dinov2.lvd142m", "dinov2_b14"),
        ("timm/vit_large_patch14_reg4_dinov2.lvd142m", "dinov2_l14_registers"),
        # OpenAI and open_clip, whose names differ only in a separator
        ("ViT-B/32", "clip_vit_b32"),
        ("ViT-B-32", "openclip_vit_b32"),
        ("ViT-B-32-quickgelu", "clip_vit_b32"),
        ("ViT-bigG-14", "openclip_vit_bigg14"),
        ("ViT-g-14", "openclip_vit_g14"),
        ("ViT-B-16-SigLIP", "openclip_siglip_b16"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "openclip_siglip_b16"),
        ("ViT-SO400M-14-SigLIP2-378", "openclip_siglip2_so400m14_378"),
        ("ViT-gopt-16-SigLIP2-256", "openclip_siglip2_gopt16_256"),
        ("ViT-B-16-SigLIP-i18n-256", "openclip_siglip_b16_256_i18n"),
        ("vit_giantopt_patch16_siglip_384.v2_webli", "timm_siglip_gopt16_384"),
        ("RN50-quickgelu", "clip_rn50"),
        ("ViT-L/14@336px", "clip_vit_l14_336"),
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "openclip_vit_h14"),
        # transformers
        ("openai/clip-vit-base-patch32", "clip_vit_b32"),
        ("google/siglip-base-patch16-224", "siglip_b16"),
        ("google/siglip-so400m-patch14-384", "siglip_so400m14_384"),
        ("apple/aimv2-1B-patch14-336", "aimv2_1b14_336"),
        ("apple/aimv2-large-patch14-224-lit", "aimv2_l14_lit"),
        ("aimv2_large_patch14_224.apple_pt_dist", "aimv2_l14"),
        ("google/siglip2-base-patch32-256", "siglip2_b32_256"),
        ("google/siglip2-giant-opt-patch16-384", "siglip2_gopt16_384"),
        ("google/siglip2-so400m-patch14-384", "siglip2_so400m14_384"),
        ("google/siglip2-base-patch16-naflex", "siglip2_b16_naflex"),
        ("timm/naflexvit_so400m_patch16_siglip.v2_webli", "timm_siglip2_so400m16_naflex"),
        ("google/vit-base-patch16-224", "vit_b16"),
        ("facebook/deit-small-distilled-patch16-224", "deit_s16_distilled"),
        ("facebook/dinov2-base", "dinov2_b14"),
        ("facebook/dinov2-with-registers-small", "dinov2_s14_registers"),
        ("facebook/dinov2-giant-imagenet1k-1-layer", "dinov2_g14_classifier"),
        ("facebook/dinov3-vits16plus-pretrain-lvd1689m", "dinov3_s16plus"),
        ("vit_large_patch16_dinov3_qkvb.sat493m", "dinov3_l16"),
        ("vit_huge_plus_patch16_dinov3.lvd1689m", "timm_dinov3_h16plus"),
        ("facebook/vit-mae-base", "mae_vit_b16"),
        ("microsoft/swin-large-patch4-window12-384", "swin_l_384"),
        ("microsoft/resnet-50", "resnet50"),
        ("CIDAS/clipseg-rd64-refined", "clipseg_rd64_refined"),
        # language and diffusion models
        ("llava-hf/llava-1.5-7b-hf", "llava_1_5_7b"),
        ("liuhaotian/llava-v1.5-13b", "llava_1_5_13b"),
        ("Qwen/Qwen-VL-Chat", "qwen_vl"),
        ("stable-diffusion-v1-5-text", "stable_diffusion_1_text"),
        ("sdxl_text_2", "stable_diffusion_xl_text_2"),
        # big_vision and the authors of DINOv2 and MAE
        ("webli_en_so400m_384", "siglip_so400m14_384"),
        ("siglip2_g-opt16_256", "siglip2_gopt16_256"),
        ("dinov2_vitl14_reg", "dinov2_l14_registers"),
        ("mae_vit_huge_patch14", "mae_vit_h14"),
        # spellings of the registered names
        ("CLIP-ViT-L14", "clip_vit_l14"),
        ("clip_vit_b_32", "clip_vit_b32"),
        ("Swin.T", "swin_t"),
        ("openai/clip-vit-b16-hf", "clip_vit_b16"),
    ],
)
def test_names_of_other_libraries(theirs, ours):
    assert registry.model_spec(theirs) is registry.model_spec(ours)


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("vit-b-32", {"clip_vit_b32", "openclip_vit_b32", "vit_b32"}),
        ("vit-g-14", {"openclip_vit_g14", "vit_giant14", "vit_gigantic14"}),
        ("VIT_L14", {"clip_vit_l14", "openclip_vit_l14", "vit_l14"}),
    ],
)
def test_ambiguous_names(name, candidates):
    with pytest.raises(UserError, match="is ambiguous: expected one of") as error:
        registry.model_spec(name)
    found = str(error.value).split("one of ")[1].split(", ")
    assert {part.split()[0] for part in found} == candidates


def test_every_alias_names_a_registered_model():
    registered = registry.model_names()
    assert set(registry.aliases().values()) <= set(registered)
    assert not set(registry.aliases()) & set(registered)


def test_every_name_and_alias_is_found():
    for name in registry.model_names():
        assert registry.architecture_name(registry.model_spec(name).architecture)
    for alias, name in registry.aliases().items():
        assert registry.model_spec(alias) is registry.model_spec(name)


def test_canonical_form():
    assert names.canonical("openai/CLIP-ViT_B.16/x-hf") == "clipvitb16x"
    assert names.canonical("somebody/vit") == "somebodyvit"


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'vit_base_patch16_224'"):
        registry.model_spec("vit_base_patch16_242")
    with pytest.raises(UserError, match="did you mean 'clip-vit-base-patch32'"):
        registry.model_spec("openai/clip-vit-bas-patch32")


def tiny() -> ModelSpec:
    """A model from outside of the package."""
    return ModelSpec(
        architecture=ViTConfig(width=8, num_heads=2), inputs=registry.model_spec("vit_b16").inputs
    )


def test_name_of_a_function_outside_of_the_package():
    assert registry.model_spec(f"{__name__}:tiny").architecture.width == 8
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        registry.model_spec(f"{__name__}:tinny")
