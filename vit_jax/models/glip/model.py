"""GLIP (Li et al. 2022, "Grounded Language-Image Pre-training").

A caption and an image fuse in a dynamic head. Each position of each feature level predicts a box,
its centerness, and logits of the caption's tokens.

Differences to the original code, in training alone: no dropout in BERT and in the fusion, and no
DropBlock in the feature pyramid.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.bert.model import Bert, BertConfig
from vit_jax.models.glip.anchors import decode_boxes, make_anchors, relative_boxes
from vit_jax.models.glip.dynamic import NUM_GROUPS
from vit_jax.models.glip.head import Head
from vit_jax.models.glip.pyramid import EXTRA_LEVELS, FeaturePyramid
from vit_jax.models.glip.tower import Tower, TowerConfig, attend_to
from vit_jax.models.layers.maps import flatten_maps, full_sizes
from vit_jax.models.layers.parameters import LayersAbove, nested
from vit_jax.models.swin.model import Swin, SwinConfig

# Of the authors' code (MODEL.ATSS), because boxes of several positions show one object. The number
# is the largest before the suppression, there of each level.
NMS_THRESHOLD, MOST_BOXES = 0.6, 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlipConfig:
    """Architecture of a GLIP with deep fusion.

    Attributes:
        image: backbone; the outputs of all stages except the first are feature levels.
        text: text tower; `text.context_length` is the largest number of tokens of a caption.
        width: number of features D of the levels, a multiple of 16.
        depth: layers of the head.
        fusion_heads: attention heads of the fusion; divides `fusion_width`.
        fusion_width: number of features of these heads.
        norm_epsilon: epsilon of the norms of the stages.
        divisor: height and width of images are padded to a multiple of it with zeros, px.
    """

    image: SwinConfig
    text: BertConfig = dataclasses.field(default_factory=BertConfig)
    width: int = 256
    depth: int = 6
    fusion_heads: int = 8
    fusion_width: int = 2048
    norm_epsilon: float = 1e-5
    divisor: int = 32

    def make(self, **execution: Any) -> "Glip":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `Glip`.
        """
        return Glip(self, **execution)

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.width % NUM_GROUPS:
            raise UserError(f"width={self.width}: expected a multiple of {NUM_GROUPS}")
        if self.fusion_width % self.fusion_heads:
            raise UserError(
                f"fusion_heads={self.fusion_heads} does not divide fusion_width={self.fusion_width}"
            )
        if len(self.image.depths) < 2:
            raise UserError(
                f"image.depths={self.image.depths}: expected at least two stages, of which the "
                "first is no feature level"
            )

    @property
    def stages(self) -> range:
        """Stages of the backbone that are feature levels."""
        return range(1, len(self.image.depths))

    @property
    def strides(self) -> tuple[int, ...]:
        """Distance of neighbouring positions of each level, px."""
        count = len(self.stages) + EXTRA_LEVELS
        return tuple(self.image.patch_size << (i + 1) for i in range(count))

    @property
    def tower(self) -> TowerConfig:
        """Configuration of the layers of the head."""
        return TowerConfig(
            width=self.width,
            depth=self.depth,
            text=self.text,
            fusion_heads=self.fusion_heads,
            fusion_width=self.fusion_width,
        )


class Predictions(NamedTuple):
    """Results of all parts; B images, T tokens, S positions of all levels.

    Attributes:
        text: features of the tokens before the head (B, T, E).
        levels: feature levels before the head, each (B, h, w, D).
        image_layers: outputs of the head's layers for the image (layers, B, S, D).
        text_layers: the same for the text (layers, B, T, E).
        logits: similarity of each position to each token, also those of padding, float32
            (B, S, T).
        deltas: boxes relative to the anchors, see `anchors.decode_boxes`, float32 (B, S, 4).
        centerness: logits of the centerness of a position in its box, float32 (B, S).
        anchors: x0, y0, x1, y1 with inclusive corners, px (S, 4).
    """

    text: Float[Array, "batch length text_width"]
    levels: list[Float[Array, "batch _rows _columns width"]]
    image_layers: Float[Array, "layers batch positions width"]
    text_layers: Float[Array, "layers batch length text_width"]
    logits: Float[Array, "batch positions length"]
    deltas: Float[Array, "batch positions 4"]
    centerness: Float[Array, "batch positions"]
    anchors: Float32[Array, "positions 4"]

    def detections(
        self, tokens: Int[Array, "batch length"], sizes: Int[Array, "batch 2"]
    ) -> dict[str, jax.Array]:
        """Returns the results of a call, see `Glip.__call__`.

        Args:
            tokens: ids of the captions (B, T).
            sizes: height and width of each image without its padding, px (B, 2).
        """
        exists = (tokens > 0)[:, None]
        return {
            "boxes": relative_boxes(decode_boxes(self.deltas, self.anchors), sizes),
            "logits": jnp.where(exists, self.logits, jnp.finfo(jnp.float32).min),
            "centerness": self.centerness,
        }


class Glip(nnx.Module):
    """Images and a caption of each to boxes, and to logits of the caption's tokens.

    Attributes:
        predicts_centerness: states that each position predicts a box with its centerness, so that
            several boxes show one object.
    """

    predicts_centerness = True

    def __init__(
        self,
        config: GlipConfig,
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
            dtype: compute type; offsets of convolutions and predictions are float32.
            scan: whether to scan the layers or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        self.config, self.dtype = config, dtype
        layers: dict[str, Any] = {"scan": scan, "remat": remat, "dtype": dtype, "rngs": rngs}
        self.image = Swin(config.image, **layers)
        self.text = Bert(config.text, **layers)
        self.pyramid = FeaturePyramid(
            [config.image.stages[i].width for i in config.stages],
            config.width,
            norm_epsilon=config.norm_epsilon,
            dtype=dtype,
            rngs=rngs,
        )
        self.tower = Tower(config.tower, **layers)
        self.head = Head(config.width, config.text.width, len(config.strides), rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        tokens: Int[Array, "batch length"],
        *,
        sizes: Int[Array, "batch 2"] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> dict[str, jax.Array]:
        """Detects objects by the phrases of captions.

        The score of a box for a phrase is the square root of the product of its centerness and of
        the mean probability of the phrase's tokens (`maskrcnn_benchmark/modeling/rpn/inference.py`
        of the original code), each the sigmoid of a logit.

        Args:
            images: (B, H, W, 3), normalised, of any H and W.
            tokens: ids of a caption for each image (B, T), and zeros as padding.
            sizes: height and width of each image, px (B, 2). The image is in the upper left corner
                of its input, and the rest is padding. None if there is no padding.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            float32 arrays by name: `boxes` (B, S, 4), center x, center y, width, height in [0, 1]
            of the image without its padding; `logits` (B, S, T) of the tokens, the lowest finite
            number for padding; `centerness`, logits (B, S).

        Raises:
            UserError: a caption that is too long.
        """
        found = self.predict(images, tokens, rng=rng)
        return found.detections(tokens, full_sizes(images, sizes))

    def predict(
        self,
        images: Float[Array, "batch height width 3"],
        tokens: Int[Array, "batch length"],
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Predictions:
        """Computes the results of all parts, as losses need them.

        Args:
            images: see `__call__`.
            tokens: see `__call__`.
            rng: PRNG key for training, or None for evaluation.
        """
        config = self.config
        text_mask = tokens > 0
        text = self.embed_caption(tokens)
        bottom, right = (-side % config.divisor for side in images.shape[1:3])
        images = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
        levels = self.pyramid(self.image.features(images, config.stages, rng=rng))
        sizes = tuple((x.shape[1], x.shape[2]) for x in levels)
        image_layers, text_layers = self.tower(flatten_maps(levels), text, text_mask, sizes)
        logits = self.head.similarity(image_layers[-1], text_layers[-1])
        deltas, centerness = self.head.boxes(image_layers[-1], sizes)
        anchors = jnp.asarray(make_anchors(sizes, config.strides))
        return Predictions(
            text, levels, image_layers, text_layers, logits, deltas, centerness, anchors
        )

    def embed_caption(
        self, tokens: Int[Array, "batch length"]
    ) -> Float[Array, "batch length text_width"]:
        """Computes the features of a caption's tokens before they see an image.

        Every token attends to the whole caption.

        Args:
            tokens: ids (B, T), see `__call__`.

        Returns:
            (B, T, E), compute type.

        Raises:
            UserError: more tokens than `text.context_length`.
        """
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return self.text(tokens, positions, attend_to(tokens > 0))

    def layers_above(self) -> LayersAbove:
        """Counts the layers between each part and the output."""
        depth = self.config.depth
        return {
            **nested("image", self.image, depth),
            **nested("text", self.text, depth),
            "pyramid": depth,
            "tower/blocks": range(depth - 1, -1, -1),
        }
