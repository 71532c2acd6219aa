"""Features that other systems take from CLIP's towers.

| function | system | model |
| --- | --- | --- |
| `llava_features` | LLaVA 1.5 | clip_vit_l14_336 |
| `stable_diffusion_states` | Stable Diffusion 1.x | clip_vit_l14 |
| `stable_diffusion_states` | Stable Diffusion 2.x, `clip_skip=1` | openclip_vit_h14 |
| `sdxl_states` | SDXL | clip_vit_l14 and openclip_vit_bigg14 |

The models `llava_1_5_7b` and `stable_diffusion_1_text` and their like are these systems' own
weights, see docs/feeding.md. The functions here take a bound dual encoder and return arrays. They
call the towers' own forward pass:

    clip = vit_jax.create_model("clip_vit_l14_336", weights="ViT-L-14-336px.pt")
    module = clip.definition.bind(clip.params)
    patches = vit_jax.llava_features(module, images)  # (B, 576, 1024)

Hidden states are counted as in these systems: `hidden_states[-1]` is the output of the last block,
`hidden_states[-2]` that of the block before it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIP
from vit_jax.models.vit.model import ViTConfig


def llava_features(
    model: CLIP, images: Float[Array, "batch height width 3"]
) -> Float[Array, "batch patches dim"]:
    """Computes the input of LLaVA's projector (Liu et al. 2023).

    The patches of `hidden_states[-2]`, without the class token and without a norm.

    Args:
        model: CLIP with a ViT, such as clip_vit_l14_336.
        images: (B, H, W, 3), normalised.

    Returns:
        (B, h w, D), compute type: 576 patches at 336 px.

    Raises:
        UserError: a CLIP whose image tower is not a ViT.

    Example:
        >>> import vit_jax
        >>> image = {"image_size": 16, "patch_size": 8, "width": 8, "depth": 3, "num_heads": 2}
        >>> clip = vit_jax.create_model("clip_vit_b32", image=image)
        >>> module = clip.definition.bind(clip.params)
        >>> llava_features(module, jnp.zeros((1, 16, 16, 3))).shape
        (1, 4, 8)
    """
    if not isinstance(model.config.image, ViTConfig):
        raise UserError(
            f"LLaVA reads the patches of a ViT; found {type(model.config.image).__name__}"
        )
    [states] = model.features(images, layers=(-2,))
    return states[:, model.config.image.num_prefix :]


def stable_diffusion_states(
    model: CLIP,
    tokens: Int[Array, "batch length"],
    *,
    clip_skip: int = 0,
    final_norm: bool = True,
) -> Float[Array, "batch length dim"]:
    """Computes the text conditioning of Stable Diffusion (Rombach et al. 2022).

    All tokens of `hidden_states[-1 - clip_skip]`. Version 1.x reads clip_vit_l14, version 2.x
    openclip_vit_h14 with `clip_skip=1`.

    Args:
        model: CLIP.
        tokens: ids (B, context_length).
        clip_skip: number of last blocks that are left out.
        final_norm: whether to apply the tower's final norm.

    Returns:
        (B, context_length, D), compute type.

    Raises:
        UserError: a negative `clip_skip`, or one that leaves out all blocks.

    Example:
        >>> import vit_jax
        >>> text = {"width": 8, "depth": 3, "num_heads": 2, "mlp_dim": 8}
        >>> clip = vit_jax.create_model("clip_vit_emoji", text={**text, "context_length": 16})
        >>> module = clip.definition.bind(clip.params)
        >>> stable_diffusion_states(module, jnp.ones((1, 16), jnp.int32), clip_skip=1).shape
        (1, 16, 8)
    """
    return model.text.states(tokens, clip_skip=clip_skip, final_norm=final_norm)


def sdxl_states(
    clip_l: CLIP,
    clip_bigg: CLIP,
    tokens_l: Int[Array, "batch length"],
    tokens_bigg: Int[Array, "batch length"],
) -> tuple[Float[Array, "batch length dim"], Float[Array, "batch pooled_dim"]]:
    """Computes the text conditioning of SDXL (Podell et al. 2024, section 2.1).

    Args:
        clip_l: clip_vit_l14.
        clip_bigg: openclip_vit_bigg14.
        tokens_l: ids (B, 77), which SDXL pads with the end of text.
        tokens_bigg: ids (B, 77), padded with zeros.

    Returns:
        States (B, 77, 768 + 1280), compute type, and the pooled, projected embedding of bigG
        (B, 1280), float32.

    Example:
        >>> import vit_jax
        >>> text = {"width": 8, "depth": 3, "num_heads": 2, "mlp_dim": 8}
        >>> clip = vit_jax.create_model("clip_vit_emoji", text={**text, "context_length": 16})
        >>> module, tokens = clip.definition.bind(clip.params), jnp.ones((1, 16), jnp.int32)
        >>> states, pooled = sdxl_states(module, module, tokens, tokens)
        >>> states.shape, pooled.shape
        ((1, 16, 16), (1, 128))
    """
    states = [
        stable_diffusion_states(model, tokens, clip_skip=1, final_norm=False)
        for model, tokens in ((clip_l, tokens_l), (clip_bigg, tokens_bigg))
    ]
    return jnp.concatenate(states, axis=-1), clip_bigg.encode_text(tokens_bigg)
