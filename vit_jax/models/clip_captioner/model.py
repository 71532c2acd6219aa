"""A dual encoder with a captioning decoder (Tschannen et al. 2025, "SigLIP 2", section 2.2).

The decoder is that of LocCa (Wan et al. 2024), whose captions have boxes as well; here they have
none.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIP, CLIPConfig, as_embedding
from vit_jax.models.layers.caption_decoder import CaptionDecoder
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.models.vit.captioner import PatchCaptioner
from vit_jax.models.vit.model import ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPCaptionerConfig(CLIPConfig):
    """Architecture of a dual encoder with a decoder.

    The parameters besides `decoder/` are those of a CLIP, under the same paths, so that its weights
    initialise this model.

    Attributes:
        decoder: architecture of the decoder, which reads the tokens of the text tower.
    """

    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)

    def make(self, **execution: Any) -> "CLIPCaptioner":
        """Builds the module with fresh parameters; the arguments are those of `CLIP`."""
        return CLIPCaptioner(self, **execution)

    def __post_init__(self) -> None:
        """Checks that both towers suit the decoder."""
        if not isinstance(self.image, ViTConfig) or self.image.pool == "none":
            raise UserError("a decoder of captions reads the patches of a ViT with pooled features")
        own, read = self.decoder, self.text
        if (own.vocab_size, own.context_length) != (read.vocab_size, read.context_length):
            raise UserError(
                f"decoder: vocab_size={own.vocab_size}, context_length={own.context_length}; "
                f"expected those of the text tower, {read.vocab_size} and {read.context_length}"
            )


class CLIPCaptioner(PatchCaptioner, CLIP):
    """Embeds images and texts, and predicts captions from the normalised patches of an image."""

    config: CLIPCaptionerConfig

    def __init__(
        self,
        config: CLIPCaptionerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        **execution: Any,
    ) -> None:
        """Builds the model.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            **execution: scan and remat, see `CLIP`.
        """
        super().__init__(config, rngs=rngs, dtype=dtype, **execution)
        self.decoder = CaptionDecoder(
            config.decoder, config.image.width, rngs=rngs, dtype=dtype, **execution
        )

    def encode_pairs(
        self,
        images: Float[Array, "batch height width 3"],
        tokens: Int[Array, "batch length"],
        parallel: Bool[Array, " batch"] | None = None,
        *,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[
        Float[Array, "batch dim"], Float[Array, "batch dim"], Float[Array, "batch length features"]
    ]:
        """Computes embeddings and the features of captions with one pass through each tower.

        Args:
            images: (B, H, W, 3), normalised.
            tokens: ids of their captions (B, context_length).
            parallel: whether each caption is predicted in parallel (B,); None for none.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            Embeddings of images and texts (B, embed_dim), float32, of length 1, and the features
            from which each token is predicted (B, T, D), see `caption_states`.
        """
        image_rng, text_rng = (None, None) if rng is None else jax.random.split(rng)
        pooled, memory = self.image.encode_patches_and_pool(images, rng=image_rng)
        embedded = self.image_projection(pooled) if self.config.image_projection else pooled
        texts = self.encode_text(tokens, normalize=True, rng=text_rng)
        return as_embedding(embedded, True), texts, self.caption_states(tokens, memory, parallel)
