"""SAM (Kirillov et al. 2023, "Segment Anything"): masks by points, boxes and masks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.layers.parameters import LayersAbove, nested
from vit_jax.models.partitioning import constrain
from vit_jax.models.sam.decoder import MaskDecoder
from vit_jax.models.sam.encoder import SamEncoder, SamEncoderConfig
from vit_jax.models.sam.prompts import MASK_SCALE, PromptEncoder

Masks = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamConfig:
    """Architecture of SAM; the defaults are those of ViT-B.

    Attributes:
        image: image encoder. Its `out_width` is the number of features C of all other parts.
        mask_width: number of features between the convolutions of masks; a multiple of 4.
        depth: number of two-way blocks of the decoder.
        num_heads: attention heads of the decoder; divides half of C.
        mlp_dim: hidden units of the MLPs of the decoder.
        num_masks: number of masks M of an ambiguous prompt.
        decoder_epsilon: epsilon of LayerNorm in the two-way blocks: 1e-6 in transformers, 1e-5 in
            the authors' code.
    """

    image: SamEncoderConfig
    mask_width: int = 16
    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    num_masks: int = 3
    decoder_epsilon: float = 1e-6

    def make(self, **execution: Any) -> "Sam":
        """Builds the module with fresh parameters; the arguments are those of `Sam`."""
        return Sam(self, **execution)

    def __post_init__(self) -> None:
        """Checks the widths."""
        width = self.image.out_width
        if width % 8 or width // 2 % self.num_heads:
            raise UserError(
                f"image.out_width={width}: expected a multiple of 8 and of "
                f"{2 * self.num_heads}, twice num_heads"
            )
        if self.mask_width % 4:
            raise UserError(f"mask_width={self.mask_width}: expected a multiple of 4")
        if self.num_masks < 1:
            raise UserError(f"num_masks={self.num_masks}: expected at least 1")


class Sam(nnx.Module):
    """Images and prompts to masks."""

    def __init__(
        self,
        config: SamConfig,
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
            scan: whether to scan the blocks of the image encoder or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`, for the image encoder.
        """
        self.config, self.dtype = config, dtype
        width, epsilon = config.image.out_width, config.image.norm_epsilon
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.image = SamEncoder(config.image, scan=scan, remat=remat, **execution)
        self.prompts = PromptEncoder(width, config.mask_width, norm_epsilon=epsilon, **execution)
        self.decoder = MaskDecoder(
            width,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            num_masks=config.num_masks + 1,
            norm_epsilon=config.decoder_epsilon,
            upscale_epsilon=epsilon,
            **execution,
        )

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        points: Float[Array, "batch prompts points 2"],
        labels: Int[Array, "batch prompts points"],
        masks: Float[Array, "batch prompts mask_height mask_width"] | None = None,
        *,
        multimask: bool = True,
        rng: Key[Array, ""] | None = None,
    ) -> Masks:
        """Predicts the masks of prompts.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            points: see `predict_masks`.
            labels: see `predict_masks`.
            masks: see `predict_masks`.
            multimask: see `predict_masks`.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            See `predict_masks`.
        """
        embedded = self.embed_image(images, rng=rng)
        return self.predict_masks(embedded, points, labels, masks, multimask=multimask)

    def embed_image(
        self,
        images: Float[Array, "batch height width 3"],
        sizes: Int[Array, "batch 2"] | None = None,
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch rows columns channels"]:
        """Computes the features of images, which serve any number of prompts.

        Args:
            images: (B, H, W, 3), normalised.
            sizes: height and width of each image in the upper left corner of its input (B, 2). The
                rest is padding, which is set to zero; None for no padding.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, H / patch_size, W / patch_size, C), compute type.
        """
        if sizes is not None:
            height, width = (
                jnp.arange(n) < sizes[:, i, None] for i, n in enumerate(images.shape[1:3])
            )
            images = jnp.where(height[:, :, None, None] & width[:, None, :, None], images, 0.0)
        embedded = self.image(images, rng=rng)
        return constrain(embedded, "batch", "height", "width", "embed")

    def predict_masks(
        self,
        embedded: Float[Array, "batch rows columns channels"],
        points: Float[Array, "batch prompts points 2"],
        labels: Int[Array, "batch prompts points"],
        masks: Float[Array, "batch prompts mask_height mask_width"] | None = None,
        *,
        multimask: bool = True,
    ) -> Masks:
        """Predicts the masks of prompts from features of images.

        `prompts.join_prompts` makes points and labels from points and boxes.

        Args:
            embedded: features of images, see `embed_image`.
            points: x and y in pixels of the input (B, P, N, 2), P prompts of N points each.
            labels: label of each point (B, P, N): 1 foreground, 0 background, 2 and 3 the upper
                left and the lower right corner of a box, -1 no point, -10 padding. N may be 0 with
                masks; prompts without a box end in a point of label -1.
            masks: logits of a mask for each prompt (B, P, 4 h, 4 w), as from an earlier call; None
                for none.
            multimask: whether to return the M masks of an ambiguous prompt instead of the one for
                an unambiguous prompt.

        Returns:
            float32 arrays by name: `masks`, logits (B, P, M or 1, 4 h, 4 w), and `scores`, the
            predicted IoU of each mask (B, P, M or 1).

        Raises:
            UserError: masks of another size.
        """
        batch, prompts = points.shape[:2]
        found, scores = self.decoder(*self.embed_prompts(embedded, points, labels, masks))
        wanted = slice(1, None) if multimask else slice(0, 1)
        found, scores = found[:, wanted], scores[:, wanted]
        return {
            "masks": found.reshape(batch, prompts, *found.shape[1:]),
            "scores": scores.reshape(batch, prompts, -1),
        }

    def embed_prompts(
        self,
        embedded: Float[Array, "batch rows columns channels"],
        points: Float[Array, "batch prompts points 2"],
        labels: Int[Array, "batch prompts points"],
        masks: Float[Array, "batch prompts mask_height mask_width"] | None = None,
    ) -> tuple[
        Float[Array, "batch_prompts rows columns channels"],
        Float[Array, "rows columns channels"],
        Float[Array, "batch_prompts points channels"],
    ]:
        """Computes the inputs of the decoder; the arguments are those of `predict_masks`.

        Returns:
            For each prompt of each image the features of the image with those of its mask added
            (B P, h, w, C), and the tokens of its points (B P, N, C); between both the positions of
            the features (h, w, C).

        Raises:
            UserError: masks of another size.
        """
        batch, rows, columns, channels = embedded.shape
        prompts, patch = points.shape[1], self.config.image.patch_size
        tokens = self.prompts.embed_points(points, labels, (rows * patch, columns * patch))
        if masks is None:
            dense = self.prompts.no_mask[...].astype(embedded.dtype)
        else:
            expected = (batch, prompts, MASK_SCALE * rows, MASK_SCALE * columns)
            if masks.shape != expected:
                raise UserError(f"masks {masks.shape}: expected logits of the shape {expected}")
            dense = self.prompts.embed_masks(masks.reshape(-1, *masks.shape[2:]))
            dense = dense.reshape(batch, prompts, *dense.shape[1:])
        image = jnp.broadcast_to(embedded[:, None] + dense, (batch, prompts, *embedded.shape[1:]))
        return (
            image.reshape(-1, rows, columns, channels),
            self.prompts.embed_grid((rows, columns)),
            tokens.reshape(batch * prompts, -1, channels),
        )

    def features(
        self, images: Float[Array, "batch height width 3"], layers: Sequence[int]
    ) -> list[Float[Array, "batch rows columns dim"]]:
        """Computes the outputs of blocks of the image encoder; see `SamEncoder.features`."""
        return self.image.features(images, layers)

    def layers_above(self) -> LayersAbove:
        """Counts the layers above each part; the decoder counts as one (BEiT)."""
        return nested("image", self.image, above=1)
