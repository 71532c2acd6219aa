"""Text encoders of Stable Diffusion.

The names are those of the diffusion models, with the number of the encoder where there are two.
Their tokenizers differ in the id that fills a row: the end of text, or 0.
"""

import dataclasses
from typing import Any

from vit_jax.inputs import ImageInputs
from vit_jax.models.clip import zoo as clip
from vit_jax.models.clip_text.model import CLIPTextConfig
from vit_jax.models.spec import ModelSpec

PADDED_WITH_END = "clip:?pad=49407"


def _text(name: str, tokenizer: str = PADDED_WITH_END, depth: int = 0, **fields: Any) -> ModelSpec:
    """The text tower of a dual encoder, with its first `depth` blocks."""
    text = clip.MODELS[name].architecture.text
    text = dataclasses.replace(text, depth=depth or text.depth)
    return ModelSpec(
        architecture=CLIPTextConfig(text=text, **fields),
        inputs=ImageInputs(),
        tokenizer=tokenizer,
    )


MODELS: dict[str, ModelSpec] = {
    # Rombach et al. 2022: CLIP's L/14.
    "stable_diffusion_1_text": _text("clip_vit_l14"),
    # Stable Diffusion 2.x: OpenCLIP's H/14, published without its last block.
    "stable_diffusion_2_text": _text("openclip_vit_h14", "clip", 23),
    # Podell et al. 2024, section 2.1: outputs of the last block but one of both.
    "stable_diffusion_xl_text": _text("clip_vit_l14", skipped_blocks=1, final_norm=False),
    "stable_diffusion_xl_text_2": _text(
        "openclip_vit_bigg14", "clip", embed_dim=1280, skipped_blocks=1, final_norm=False
    ),
}

ALIASES: dict[str, str] = {
    "sd1_text": "stable_diffusion_1_text",
    "sd2_text": "stable_diffusion_2_text",
    "sdxl_text": "stable_diffusion_xl_text",
    "sdxl_text_2": "stable_diffusion_xl_text_2",
    **{f"stable_diffusion_v1_{i}_text": "stable_diffusion_1_text" for i in (1, 2, 3, 4, 5)},
    "stable_diffusion_2_1_text": "stable_diffusion_2_text",
    "stable_diffusion_xl_base_1.0_text": "stable_diffusion_xl_text",
    "stable_diffusion_xl_base_1.0_text_2": "stable_diffusion_xl_text_2",
}
