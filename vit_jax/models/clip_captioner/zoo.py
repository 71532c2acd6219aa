"""SigLIP 2 with the decoder of its training, which is not published."""

import dataclasses

from vit_jax.models.clip.zoo import MODELS as CLIPS
from vit_jax.models.clip_captioner.model import CLIPCaptionerConfig
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.models.spec import ModelSpec

_GEMMA = 256_000


def _siglip2(name: str) -> ModelSpec:
    """The decoder has the sizes of the text tower and half of its blocks (section 2.2)."""
    spec = CLIPS[name]
    text = dataclasses.replace(spec.architecture.text, vocab_size=_GEMMA)
    decoder = DecoderConfig(
        vocab_size=_GEMMA,
        context_length=text.context_length,
        width=text.width,
        depth=text.depth // 2,
        num_heads=text.num_heads,
        mlp_dim=text.mlp_dim,
    )
    towers = {**vars(spec.architecture), "text": text}
    return dataclasses.replace(
        spec, architecture=CLIPCaptionerConfig(**towers, decoder=decoder), tokenizer="sentencepiece"
    )


MODELS: dict[str, ModelSpec] = {"siglip2_b16_captioner": _siglip2("siglip_b16")}

ALIASES: dict[str, str] = {}
