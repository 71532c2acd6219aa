"""SigLIP as written by open_clip: an image tower of timm and a text tower of open_clip."""

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.weights.openai import transformer
from vit_jax.models.layers.weights import FitText
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.weights import timm
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.torch import linear, norm

TRUNK = "visual.trunk."


class OpenCLIPSigLIP(Format):
    """Dual encoders of open_clip's class `CustomTextCLIP` whose image tower is a ViT of timm."""

    name = "siglip_open_clip"
    architectures = (CLIPConfig,)
    description = "open_clip_config.json"
    position_resize = "bicubic_antialias"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has an image tower of timm and a text tower of open_clip."""
        return f"{TRUNK}patch_embed.proj.weight" in file and "text.ln_final.weight" in file

    def entries(self, architecture: CLIPConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        image, text = self._image(architecture), architecture.text
        if not architecture.text_projection_bias:
            raise UserError(
                f"the format {self.name} holds models with text_projection_bias=True; found False"
            )
        scalars = ["logit_scale"]
        if architecture.init_logit_bias is not None:
            scalars.append("logit_bias")
        return [
            *timm.vit(image, path="image/", key=TRUNK),
            Entry("text/token_embed/embedding", "text.token_embedding.weight"),
            Entry(
                "text/positions", "text.positional_embedding", resize=FitText(text.position_resize)
            ),
            *transformer("text/transformer", "text.transformer", text.depth),
            *norm("text/norm", "text.ln_final"),
            *linear("text_projection", "text.text_projection"),
            *(Entry(name, name) for name in scalars),
        ]

    def constants(self, architecture: CLIPConfig) -> dict[str, np.ndarray]:
        """Returns fixed positions; see `Format.constants`."""
        return timm.constants(self._image(architecture), key=TRUNK)

    def _image(self, architecture: CLIPConfig) -> ViTConfig:
        image = architecture.image
        if not isinstance(image, ViTConfig) or architecture.image_projection:
            raise UserError(
                f"the format {self.name} holds ViT image towers without a projection; found "
                f"{type(image).__name__}, image_projection={architecture.image_projection}"
            )
        return image
