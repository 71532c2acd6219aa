"""Contrastive captioners of open_clip."""

from vit_jax.inputs import ImageInputs
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.coca.model import CoCaConfig
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD, ModelSpec
from vit_jax.models.vit.zoo import BASE, LARGE, Sizes, vit


def _coca(sizes: Sizes, patch_size: int, width: int, num_heads: int) -> ModelSpec:
    """Text tower and decoder have twelve blocks of the width of the embeddings."""
    image = vit(
        sizes,
        patch_size,
        pool="none",
        pre_norm=True,
        patch_bias=False,
        norm_epsilon=1e-5,
        weight_init="clip",
    )
    text = TextConfig(
        context_length=76,
        width=width,
        num_heads=num_heads,
        mlp_dim=4 * width,
        activation="gelu",
        pool="last",
    )
    decoder = DecoderConfig(
        vocab_size=text.vocab_size,
        context_length=text.context_length,
        width=width,
        depth=12,
        num_heads=num_heads,
        mlp_dim=4 * width,
        activation="gelu",
        norm_epsilon=1e-5,
        use_bias=True,
        interleaved=True,
        weight_init="clip",
    )
    return ModelSpec(
        architecture=CoCaConfig(image=image, text=text, decoder=decoder, embed_dim=width),
        inputs=ImageInputs(mean=CLIP_MEAN, std=CLIP_STD),
        tokenizer="clip",
    )


MODELS: dict[str, ModelSpec] = {
    "coca_vit_b32": _coca(BASE, 32, 512, 8),
    "coca_vit_l14": _coca(LARGE, 14, 768, 12),
}

ALIASES: dict[str, str] = {"coca_ViT-B-32": "coca_vit_b32", "coca_ViT-L-14": "coca_vit_l14"}
