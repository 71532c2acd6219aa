"""Captions from the patches of a ViT."""

from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.models.layers.attention import KeyValues
from vit_jax.models.layers.caption_decoder import CaptionDecoder
from vit_jax.models.vit.model import ViT


class PatchCaptioner(nnx.Module):
    """The part of a model that predicts captions from the normalised patches of its ViT.

    Attributes:
        image: the ViT.
        decoder: reads tokens and patches.
        num_given: number of leading tokens of a caption that are read but not predicted.
    """

    image: ViT
    decoder: CaptionDecoder
    num_given = 0

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

    def caption_cache(self, rows: int, length: int) -> KeyValues:
        """Allocates the cache of a generation, see `CaptionDecoder.empty_cache`."""
        return self.decoder.empty_cache(rows, length)

    def next_caption_states(
        self,
        tokens: Int[Array, " rows"],
        at: Int[Array, ""],
        cache: KeyValues,
        memory: KeyValues,
    ) -> tuple[Float[Array, "rows width"], KeyValues]:
        """Computes `caption_states` at one index, and the cache; see `CaptionDecoder.step`."""
        return self.decoder.step(tokens, at, cache, memory)
