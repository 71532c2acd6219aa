"""Captioners: sizes of Tschannen et al. 2023 (section 3), and a small one."""

from vit_jax.inputs import ImageInputs
from vit_jax.models.cappa.model import CapPaConfig
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.zoo import BASE, LARGE, Sizes, vit


def _cappa(sizes: Sizes, patch_size: int) -> ModelSpec:
    """The decoder has width, heads and MLP of the encoder, and six blocks."""
    width, _, num_heads = sizes
    image = vit(
        sizes,
        patch_size,
        class_token=False,
        pool="mean",
        activation="gelu_tanh",
        weight_init="xavier",
    )
    decoder = DecoderConfig(width=width, num_heads=num_heads, mlp_dim=4 * width)
    return ModelSpec(
        architecture=CapPaConfig(image=image, decoder=decoder),
        inputs=ImageInputs(resize="squash"),
        tokenizer="sentencepiece",
    )


MODELS: dict[str, ModelSpec] = {
    # This project, for the data set that it contains.
    "cappa_emoji": ModelSpec(
        architecture=CapPaConfig(
            image=vit(
                (128, 6, 2),
                4,
                image_size=32,
                class_token=False,
                pool="mean",
                position_init="sincos",
                weight_init="clip",
                patch_dropout=0.5,
            ),
            decoder=DecoderConfig(
                vocab_size=1024,
                context_length=16,
                width=128,
                depth=2,
                num_heads=2,
                mlp_dim=512,
                embed_init=0.02,
            ),
        ),
        inputs=ImageInputs(resize="pad"),
        tokenizer="trained",
    ),
    "cappa_b16": _cappa(BASE, 16),
    "cappa_l14": _cappa(LARGE, 14),
}

ALIASES: dict[str, str] = {}
