"""What other systems take from CLIP's towers, from the one forward implementation.

Hidden states are counted as those systems do: `hidden_states[-1]` is the output of the last block,
`hidden_states[-2]` of the one before it.
"""

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIP
from vit_jax.models.vit.model import ViT, ViTConfig


def llava_features(model: CLIP, images: jax.Array) -> jax.Array:
    """Patches for LLaVA's projector (Liu et al. 2023): `hidden_states[-2]` without the class token.

    Args:
        model: a CLIP with a ViT, as clip_vit_l14_336.
        images: (B, H, W, 3), preprocessed.

    Returns:
        (B, h w, D): 576 patches at 336 px.
    """
    if not isinstance(model.config.image, ViTConfig):
        raise UserError("LLaVA reads the patches of a ViT; this image tower is another")
    [states] = model.features(images, layers=(-2,))
    return states[:, model.config.image.num_prefix :]


def qwen_vl_features(model: ViT, images: jax.Array) -> jax.Array:
    """Patches for Qwen-VL's resampler (Bai et al. 2023, section 2.1): the last block's output.

    Args:
        model: qwen_vl_bigg14.
        images: (B, 448, 448, 3), preprocessed; positions are resized from 224 px.

    Returns:
        (B, 1024, 1664).
    """
    [states] = model.features(images, layers=(-1,))
    return states[:, model.config.num_prefix :]


def stable_diffusion_states(
    model: CLIP, tokens: jax.Array, *, clip_skip: int = 0, final_norm: bool = True
) -> jax.Array:
    """States of all tokens for Stable Diffusion (Rombach et al. 2022): `hidden_states[-1 - skip]`.

    1.x reads clip_vit_l14; 2.x openclip_vit_h14 with `clip_skip=1`; SDXL both of its towers with
    `clip_skip=1, final_norm=False`.

    Args:
        model: a CLIP.
        tokens: (B, context_length).
        clip_skip: last blocks left out.
        final_norm: whether the tower's final norm follows.

    Returns:
        (B, context_length, D), compute type.
    """
    if clip_skip < 0:
        raise UserError(f"clip_skip={clip_skip}: expected 0 or more")
    [states] = model.text.features(tokens, layers=(-1 - clip_skip,))
    return model.text.norm(states) if final_norm else states


def sdxl_states(
    clip_l: CLIP, clip_bigg: CLIP, tokens_l: jax.Array, tokens_bigg: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Text conditioning of SDXL (Podell et al. 2024, section 2.1).

    Args:
        clip_l: clip_vit_l14.
        clip_bigg: openclip_vit_bigg14.
        tokens_l: (B, 77), which SDXL pads with the end of text.
        tokens_bigg: (B, 77), padded with zeros.

    Returns:
        States (B, 77, 768 + 1280) and bigG's pooled, projected embedding (B, 1280).
    """
    states = [
        stable_diffusion_states(model, tokens, clip_skip=1, final_norm=False)
        for model, tokens in ((clip_l, tokens_l), (clip_bigg, tokens_bigg))
    ]
    return jnp.concatenate(states, axis=-1), clip_bigg.encode_text(tokens_bigg)
