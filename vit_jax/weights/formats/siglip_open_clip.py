"""SigLIP in open_clip: an image tower of timm's and a text tower of open_clip's.

open_clip's other models have the names of OpenAI's, see `openai_clip`. Its SigLIP has the exact
GELU, where big_vision trained with the tanh form.
"""

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.formats import timm_vit
from vit_jax.weights.formats.openai_clip import transformer
from vit_jax.weights.layers.torch import linear, norm
from vit_jax.weights.mapping import Entry


class SigLIPOpenCLIP(Format):
    """open_clip's `CustomTextCLIP` with a ViT of timm's."""

    name = "siglip_open_clip"
    families = ("clip",)

    def matches(self, file: TensorFile) -> bool:
        return "visual.trunk.patch_embed.proj.weight" in file and "text.ln_final.weight" in file

    def entries(self, family: str, architecture: CLIPConfig) -> list[Entry]:
        image, text = self._image(architecture), architecture.text
        if not architecture.text_projection_bias:
            raise UserError(f"the format {self.name} holds models with text_projection_bias=True")
        scalars = ["logit_scale"]
        if architecture.init_logit_bias is not None:
            scalars.append("logit_bias")
        return [
            *timm_vit.vit(image, path="image/", key="visual.trunk."),
            Entry("text/token_embed/embedding", "text.token_embedding.weight"),
            Entry("text/positions", "text.positional_embedding"),
            *transformer("text/transformer", "text.transformer", text.depth),
            *norm("text/norm", "text.ln_final"),
            *linear("text_projection", "text.text_projection"),
            *(Entry(name, name) for name in scalars),
        ]

    def constants(self, family: str, architecture: CLIPConfig) -> dict[str, np.ndarray]:
        return timm_vit.constants(self._image(architecture), key="visual.trunk.")

    def _image(self, architecture: CLIPConfig) -> ViTConfig:
        image = architecture.image
        if not isinstance(image, ViTConfig) or architecture.image_projection:
            raise UserError(
                f"the format {self.name} holds ViT image towers without a projection; found "
                f"{type(image).__name__}, image_projection={architecture.image_projection}"
            )
        return image
