"""Image captioner (Tschannen et al. 2023, "Image Captioners Are Scalable Vision Learners Too")."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.layers.decoder import CaptionDecoder, DecoderConfig
from vit_jax.models.layers.parameters import LayersAbove, nested
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


class CapPa(nnx.Module):
    """Predicts the captions of images from their normalised patches.

    Attributes:
        num_given: number of leading tokens of a caption that are read but not predicted.
    """

    num_given = 0

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

    @property
    def embed_dim(self) -> int:
        """Number of pooled features D."""
        return self.image.embed_dim

    def encode_image(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch dim"]:
        """Computes pooled features; the decoder is not used.

        Args:
            images: (B, H, W, 3), normalised.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, D), compute type.
        """
        return self.image.encode_image(images, rng=rng)

    def encode_memory(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch patches dim"]:
        """Computes the patches that the decoder attends to.

        Args:
            images: (B, H, W, 3), normalised.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, N, D), compute type.
        """
        return self.image.encode_patches_and_pool(images, rng=rng)[1]

    def caption_states(
        self,
        tokens: Int[Array, "batch length"],
        memory: Float[Array, "batch patches dim"],
        parallel: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Computes the features from which each token is predicted, see `CaptionDecoder`."""
        return self.decoder(tokens, memory, parallel)

    def features(
        self, images: Float[Array, "batch height width 3"], layers: Sequence[int]
    ) -> list[Float[Array, "batch tokens dim"]]:
        """Computes intermediate outputs of the encoder, see `ViT.features`.

        Args:
            images: (B, H, W, 3), normalised.
            layers: indices of blocks; negative ones count from the last.
        """
        return self.image.features(images, layers)

    def layers_above(self) -> LayersAbove:
        """Counts the layers above each part of the encoder; the decoder counts as its head."""
        return nested("image", self.image)
