"""SigLIP 2 with the decoder of its training, which is not published."""

import dataclasses
from typing import Any

from vit_jax.models.clip.zoo import MODELS as CLIPS
from vit_jax.models.clip_captioner.model import CLIPCaptionerConfig
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.models.spec import ModelSpec


def _with_decoder(name: str, **changes: Any) -> ModelSpec:
    """The decoder has the sizes of the text tower and half of its blocks (section 2.2)."""
    spec = CLIPS[name]
    text = spec.architecture.text
    decoder = DecoderConfig(
        vocab_size=text.vocab_size,
        context_length=text.context_length,
        width=text.width,
        depth=text.depth // 2,
        num_heads=text.num_heads,
        mlp_dim=text.mlp_dim,
        **changes,
    )
    architecture = CLIPCaptionerConfig(**vars(spec.architecture), decoder=decoder)
    return dataclasses.replace(spec, architecture=architecture)


MODELS: dict[str, ModelSpec] = {
    "siglip2_b16_captioner": _with_decoder("siglip2_b16"),
    # This project, for the data set that it contains.
    "clip_vit_emoji_captioner": _with_decoder("clip_vit_emoji", embed_init=0.02),
}

ALIASES: dict[str, str] = {}
