"""CLIPSeg (Lüddecke and Ecker 2022, "Image Segmentation Using Text and Image Prompts").

A dual encoder, usually frozen, and a small decoder that turns the tokens of an image and the
embedding of a text or of an example image into a mask.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIP, CLIPConfig
from vit_jax.models.clipseg.decoder import REFINED_SCALES, MaskDecoder
from vit_jax.models.layers.parameters import check_layers
from vit_jax.models.sizes import grid_of
from vit_jax.models.vit.model import ViTConfig

Masks = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPSegConfig(CLIPConfig):
    """Architecture of CLIPSeg: that of its dual encoder, and of its decoder.

    The fields of the dual encoder are those of `CLIPConfig`: `image` (a ViT, with or without a
    class token), `text`, `embed_dim`, and its parameters have the same paths, so that
    `config.init.weights` of any dual encoder initialises a segmenter; `config.init.fresh =
    ("decoder/.*",)` then names the rest. Positions of another size of images are resized.

    Attributes:
        layers: indices of the blocks of the image tower that the decoder reads, zero-based and
            ascending. It reads the last one first.
        reduced_width: number of features of the decoder, "rd" in the published names.
        decoder_heads: attention heads of the decoder.
        decoder_mlp_dim: hidden units of the MLPs of the decoder.
        condition_block: index of the decoder's block whose input the prompt changes.
        refined: whether three convolutions make masks of the last block instead of one.
    """

    layers: tuple[int, ...] = (3, 6, 9)
    reduced_width: int = 64
    decoder_heads: int = 4
    decoder_mlp_dim: int = 2048
    condition_block: int = 0
    refined: bool = False

    def make(self, **execution: Any) -> "CLIPSeg":
        """Builds the module with fresh parameters; the arguments are those of `CLIP`."""
        return CLIPSeg(self, **execution)

    def __post_init__(self) -> None:
        """Checks the image tower and the fields of the decoder."""
        if not isinstance(self.image, ViTConfig):
            raise UserError(
                f"the image tower of CLIPSeg is a ViT; found {type(self.image).__name__}"
            )
        check_layers(self.layers, self.image.depth)
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise UserError(
                f"layers={self.layers}: expected ascending indices of blocks, 0 the first one"
            )
        if not 0 <= self.condition_block < len(self.layers):
            raise UserError(
                f"condition_block={self.condition_block}: expected one of the "
                f"{len(self.layers)} blocks of the decoder, 0 the first one"
            )
        if self.reduced_width % self.decoder_heads:
            raise UserError(
                f"decoder_heads={self.decoder_heads} does not divide "
                f"reduced_width={self.reduced_width}"
            )
        scale = REFINED_SCALES[0] * REFINED_SCALES[1]
        if self.refined and self.image.patch_size != scale:
            raise UserError(
                f"the refined decoder enlarges patches of {scale} px: expected "
                f"image.patch_size={scale} or refined=False; found {self.image.patch_size}"
            )


class CLIPSeg(CLIP):
    """Images and prompts to masks. The methods of `CLIP` work as well."""

    config: CLIPSegConfig

    def __init__(
        self, config: CLIPSegConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, **execution: Any
    ) -> None:
        """Builds the model.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            **execution: `scan` and `remat` of the towers, see `CLIP`.
        """
        super().__init__(config, rngs=rngs, dtype=dtype, **execution)
        self.decoder = MaskDecoder(
            config.image.width,
            config.reduced_width,
            depth=len(config.layers),
            num_heads=config.decoder_heads,
            mlp_dim=config.decoder_mlp_dim,
            condition_width=config.embed_dim,
            condition_block=config.condition_block,
            patch_size=config.image.patch_size,
            refined=config.refined,
            norm_epsilon=config.image.norm_epsilon,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        tokens: Int[Array, "batch prompts length"],
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Masks:
        """Computes the masks of text prompts.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            tokens: prompts of each image (B, M, T). A row that starts with 0 is padding.
            rng: PRNG key of the text tower for training, or None for evaluation. The image tower
                is used as in evaluation.

        Returns:
            See `masks_of`. The logits of padding are those of an embedding of zeros.
        """
        batch, prompts, length = tokens.shape
        conditions = self.encode_text(tokens.reshape(batch * prompts, length), rng=rng)
        exist = (tokens[..., 0] > 0)[..., None]
        return self.masks_of(images, jnp.where(exist, conditions.reshape(batch, prompts, -1), 0))

    def masks_of(
        self,
        images: Float[Array, "batch height width 3"],
        conditions: Float[Array, "batch_or_1 prompts embed"],
    ) -> Masks:
        """Computes the masks of embeddings of prompts.

        Args:
            images: (B, H, W, 3), normalised.
            conditions: embeddings of prompts (B or 1, M, embed_dim) of any length, from
                `encode_text` or, for example images, from `encode_image`. Mixtures of both are
                prompts, too (section 3.3 of the paper).

        Returns:
            float32 arrays by name: `masks`, logits (B, M, H, W), and `scores` (B, M), the largest
            probability of a pixel.
        """
        activations = self.features(images, self.config.layers)
        conditions = jnp.broadcast_to(conditions, (len(images), *conditions.shape[1:]))
        grid = grid_of((images.shape[1], images.shape[2]), self.config.image.patch_size)
        masks = self.decoder(activations, conditions.astype(self.dtype), grid)
        return {"masks": masks, "scores": jax.nn.sigmoid(jnp.max(masks, axis=(2, 3)))}
