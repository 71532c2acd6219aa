"""SigLIP of big_vision (github.com/google-research/big_vision), `.npz`."""

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.layers.weights import FitText
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.weights.big_vision import BigVision
from vit_jax.weights.entry import Entry
from vit_jax.weights.layers.flax import linear, norm
from vit_jax.weights.transforms import LEADING_ONE


class BigVisionSigLIP(BigVision):
    """Dual encoders with numbered blocks."""

    name = "big_vision"
    architectures = (CLIPConfig,)
    tower = "img/"

    def entries(self, architecture: CLIPConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        image, text = architecture.image, architecture.text
        if not isinstance(image, ViTConfig):
            raise UserError(
                f"the format {self.name} holds dual encoders whose image tower is a ViT; found "
                f"{type(image).__name__}"
            )
        if (text.causal, text.pool) != (False, "last"):
            raise UserError(
                f"the format {self.name} holds text towers with causal=False, pool='last'; "
                f"found {(text.causal, text.pool)}"
            )
        return [
            *self.image_tower(image, "image/"),
            Entry("text/token_embed/embedding", "txt/Embed_0/embedding"),
            Entry(
                "text/positions",
                "txt/pos_embedding",
                LEADING_ONE,
                resize=FitText(text.position_resize),
            ),
            *self.blocks("text/transformer", "txt/Encoder_0", text.depth),
            *norm("text/norm", "txt/Encoder_0/encoder_norm"),
            *linear("text_projection", "txt/head"),
            Entry("logit_scale", "t", LEADING_ONE),
            Entry("logit_bias", "b", LEADING_ONE),
        ]


class BigVisionScannedSigLIP(BigVisionSigLIP):
    """Dual encoders with stacked blocks."""

    name = "big_vision_scanned"
    scanned = True
