"""Image captioner (Tschannen et al. 2023, "Image Captioners Are Scalable Vision Learners Too")."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.layers.caption_decoder import CaptionDecoder
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.models.vit.backbone import ViTBackbone
from vit_jax.models.vit.captioner import PatchCaptioner
from vit_jax.models.vit.model import ViT, ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapPaConfig:
    """Architecture of an image encoder with a captioning decoder.

    Attributes:
        image: architecture of the encoder, a ViT without a head.
        decoder: architecture of the decoder.
    """

    image: ViTConfig
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)

    def make(self, **execution: Any) -> "CapPa":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `CapPa`.
        """
        return CapPa(self, **execution)

    def __post_init__(self) -> None:
        """Checks the encoder."""
        if self.image.num_classes or self.image.pool == "none":
            raise UserError("a captioner reads patches: set image.num_classes=0 and image.pool")

    @property
    def text(self) -> DecoderConfig:
        """The part that reads text, from which tokenizer and batches have their sizes."""
        return self.decoder


class CapPa(PatchCaptioner, ViTBackbone):
    """Predicts the captions of images from their normalised patches."""

    def __init__(
        self,
        config: CapPaConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ) -> None:
        """Builds the model.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            scan: whether to scan the blocks or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        self.config, self.dtype = config, dtype
        execution: dict[str, Any] = {"dtype": dtype, "scan": scan, "remat": remat, "rngs": rngs}
        self.image = ViT(config.image, **execution)
        self.decoder = CaptionDecoder(config.decoder, config.image.width, **execution)
