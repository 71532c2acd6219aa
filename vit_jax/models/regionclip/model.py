"""RegionCLIP (Zhong et al. 2022, "RegionCLIP: Region-based Language-Image Pretraining").

CLIP with a ResNet, whose last stage and attention pooling are applied to regions instead of images.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIP, CLIPConfig, as_embedding
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.ops.boxes import cxcywh_to_xyxy
from vit_jax.models.ops.roi_align import roi_align
from vit_jax.models.partitioning import constrain

_SHARED_STAGE = 2  # number of the last stage that is applied to the whole image (C4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionCLIPConfig(CLIPConfig):
    """Architecture of a classifier of regions: that of its dual encoder.

    The parameters are those of a CLIP with a ResNet, under the same paths, so that its weights
    initialise a RegionCLIP exactly. `image` is a `CLIPResNetConfig`: `image.image_size` is the size
    of the scenes, and `image.pool_size` that of the images which CLIP was trained on. A region is
    sampled at the resolution that the stage before the last has for such an image: 14 x 14 for
    RN50, 18 x 18 for RN50x4.

    Attributes:
        image_projection: False; the attention pooling ends in the shared space.
        init_logit_scale: initial logarithm of the scale of the cosine similarities; the published
            temperature is 0.01.
    """

    image_projection: bool = False
    init_logit_scale: float = math.log(100.0)

    def make(self, **execution: Any) -> "RegionCLIP":
        """Builds the module with fresh parameters; the arguments are those of `CLIP`."""
        return RegionCLIP(self, **execution)

    def __post_init__(self) -> None:
        """Checks the image tower."""
        if not isinstance(self.image, CLIPResNetConfig):
            raise UserError(
                "the image tower of RegionCLIP is CLIP's ResNet, as that of clip_rn50; found "
                f"{type(self.image).__name__}"
            )


class RegionCLIP(CLIP):
    """Images, boxes and embeddings of classes to logits.

    Batch norms use their running statistics in training as well and leave them unchanged.
    `config.optim.freeze` freezes their scales and biases, see configs/regionclip_rn50.py.
    """

    config: RegionCLIPConfig

    def encode_image(
        self,
        images: Float[Array, "batch height width 3"],  # type: ignore[override]
        *,
        normalize: bool = False,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch dim"]:
        """Computes embeddings of images as regions, see `encode_regions`.

        Images of `config.image.pool_size` have the embeddings of CLIP.
        """
        whole = jnp.broadcast_to(jnp.asarray([0.5, 0.5, 1.0, 1.0]), (len(images), 1, 4))
        return self.encode_regions(images, whole, normalize=normalize, rng=rng)[:, 0]

    def encode_regions(
        self,
        images: Float[Array, "batch height width 3"],
        boxes: Float[Array, "batch n 4"],
        *,
        normalize: bool = False,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch n dim"]:
        """Computes embeddings of regions in the space shared with texts.

        Args:
            images: (B, H, W, 3), normalised; any H and W that 32 divides.
            boxes: (B, N, 4): center x, center y, width, height in [0, 1] of the images.
            normalize: whether to scale the embeddings to length 1.
            rng: not used; nothing is random.

        Returns:
            (B, N, embed_dim), float32; a constant for boxes without area, which serve as padding.
        """
        del rng
        tower, (batch, count) = self.image, boxes.shape[:2]
        [features] = tower.features(images, (_SHARED_STAGE,))
        rows, columns = features.shape[1:3]
        cells = cxcywh_to_xyxy(boxes) * jnp.asarray([columns, rows] * 2, boxes.dtype)
        height, width = self.config.image.grid
        regions = roi_align(features, cells, (2 * height, 2 * width))
        regions = regions.reshape(batch * count, *regions.shape[2:])
        regions = constrain(regions, "batch", None, None, None)
        pooled = tower.pool(tower.stage3(regions, train=False))
        return as_embedding(
            constrain(pooled.reshape(batch, count, -1), "batch", None, None), normalize
        )

    def embed_queries(
        self, tokens: Int[Array, "classes length"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "classes dim"]:
        """Computes embeddings of class prompts, which can be kept for many images.

        Args:
            tokens: class prompts (C, T).
            rng: not used.

        Returns:
            (C, embed_dim), float32, of length 1.
        """
        return self.encode_text(tokens, normalize=True, rng=rng)

    def classify_regions(
        self,
        images: Float[Array, "batch height width 3"],
        boxes: Float[Array, "batch n 4"],
        queries: Float[Array, "batch_or_1 classes dim"],
        query_mask: Bool[Array, "batch_or_1 classes"] | None = None,
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch n classes"]:
        """Computes the logits of classes for each box.

        Args:
            images: (B, H, W, 3), normalised.
            boxes: (B, N, 4), cxcywh in [0, 1] of the images.
            queries: embeddings of classes of length 1 (B or 1, C, embed_dim), as from
                `embed_queries`.
            query_mask: whether a query exists (B or 1, C); None if all exist.
            rng: not used.

        Returns:
            (B, N, C), float32: cosine similarities over the temperature, the lowest finite number
            where there is no query. See `region_probabilities`.
        """
        regions = self.encode_regions(images, boxes, normalize=True, rng=rng)
        queries = jnp.broadcast_to(queries, (len(images), *queries.shape[1:]))
        scale, _ = self.logit_parameters()
        logits = scale * jnp.einsum("bnd,bcd->bnc", regions, queries.astype(jnp.float32))
        if query_mask is None:
            return logits
        return jnp.where(query_mask[:, None], logits, jnp.finfo(jnp.float32).min)


def region_probabilities(
    logits: Float[Array, "*batch classes"],
) -> Float[Array, "*batch classes"]:
    """Computes the probabilities of classes beside the background.

    The embedding of the background is zero, and so is its logit.

    Args:
        logits: logits of classes (..., C).

    Returns:
        (..., C); the rest to a sum of 1 is the probability of the background.
    """
    with_background = jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(0, 1)])
    return jax.nn.softmax(with_background, axis=-1)[..., :-1]
