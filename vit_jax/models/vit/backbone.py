"""Models around a ViT: those that read its blocks, and those whose features are its own."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.layers.parameters import LayersAbove, nested
from vit_jax.models.vit.model import ViT


class ViTReader(nnx.Module):
    """A model whose blocks are those of its ViT.

    Attributes:
        image: the ViT.
    """

    image: ViT

    def features(
        self, images: Float[Array, "batch height width 3"], layers: Sequence[int]
    ) -> list[Float[Array, "batch tokens dim"]]:
        """Computes outputs of blocks, see `ViT.features`.

        Args:
            images: (B, H, W, 3), normalised.
            layers: indices of blocks; negative ones count from the last.
        """
        return self.image.features(images, layers)

    def layers_above(self) -> LayersAbove:
        """Counts the layers above each part of the ViT; the other parts count as its head."""
        return nested("image", self.image)


class ViTBackbone(ViTReader):
    """A model with the pooled features of its ViT, whose other parts serve its training."""

    @property
    def embed_dim(self) -> int:
        """Number of pooled features D."""
        return self.image.embed_dim

    def encode_image(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch dim"]:
        """Computes pooled features of whole images; the other parts are not used.

        Args:
            images: (B, H, W, 3), normalised.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, D), compute type.
        """
        return self.image.encode_image(images, rng=rng)
