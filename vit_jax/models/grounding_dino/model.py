"""Grounding DINO (Liu et al. 2023, "Grounding DINO: Marrying DINO with Grounded Pre-Training").

A caption and an image enhance each other's features. Queries, chosen by their similarity to the
words, become boxes, and the logits of a box are its similarities to the tokens of the caption.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.bert.model import Bert, BertConfig
from vit_jax.models.grounding_dino.captions import phrase_layout
from vit_jax.models.grounding_dino.decoder import Decoder, Memory, QuerySelection
from vit_jax.models.grounding_dino.encoder import Encoder, EncoderInputs, LayerConfig
from vit_jax.models.grounding_dino.levels import (
    NUM_GROUPS,
    LevelProjections,
    level_geometry,
)
from vit_jax.models.grounding_dino.positions import map_positions, sine_positions
from vit_jax.models.layers.fusion import XAVIER
from vit_jax.models.layers.heads import linear_layer
from vit_jax.models.layers.maps import flatten_maps, full_sizes
from vit_jax.models.layers.parameters import LayersAbove, metadata, nested
from vit_jax.models.swin.model import Swin, SwinConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundingDinoConfig:
    """Architecture of a Grounding DINO.

    Attributes:
        image: backbone; the outputs of all stages except the first are feature levels.
        text: text tower; `text.context_length` is the largest number of tokens of a caption.
        width: number of features D of levels, text and queries, a multiple of 32.
        num_levels: number of feature levels, at least that of the stages used.
        num_queries: number of boxes Q.
        encoder_depth: layers of the feature enhancer.
        decoder_depth: layers of the decoder.
        num_heads: attention heads of the image and of queries; even, and divides `width`.
        encoder_mlp_dim: hidden units of the enhancer's MLPs; half as many for the text and for the
            fusion of both.
        decoder_mlp_dim: hidden units of the decoder's MLPs.
        encoder_samples: points of deformable attention per head and level in the enhancer.
        decoder_samples: the same in the decoder.
        position_temperature: ratio of the wavelengths of positions in the image.
        norm_epsilon: epsilon of LayerNorm in the enhancer and the decoder.
        fusion_drop_path: stochastic depth of the fusion.
    """

    image: SwinConfig
    text: BertConfig = dataclasses.field(default_factory=BertConfig)
    width: int = 256
    num_levels: int = 4
    num_queries: int = 900
    encoder_depth: int = 6
    decoder_depth: int = 6
    num_heads: int = 8
    encoder_mlp_dim: int = 2048
    decoder_mlp_dim: int = 2048
    encoder_samples: int = 4
    decoder_samples: int = 4
    position_temperature: float = 20.0
    norm_epsilon: float = 1e-5
    fusion_drop_path: float = 0.1

    def make(self, **execution: Any) -> "GroundingDino":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `GroundingDino`.
        """
        return GroundingDino(self, **execution)

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.width % NUM_GROUPS or self.width % self.num_heads:
            raise UserError(
                f"width={self.width}: expected a multiple of {NUM_GROUPS} and of "
                f"num_heads={self.num_heads}"
            )
        if self.num_heads % 2 or self.encoder_mlp_dim % self.num_heads:
            raise UserError(
                f"num_heads={self.num_heads}: expected an even number that divides "
                f"encoder_mlp_dim={self.encoder_mlp_dim}"
            )
        if self.num_levels < len(self.stages):
            raise UserError(
                f"num_levels={self.num_levels}: expected at least {len(self.stages)}, one for each "
                "stage of the backbone except the first"
            )

    @property
    def stages(self) -> range:
        """Stages of the backbone that are feature levels."""
        return range(1, len(self.image.depths))

    def layer(self, mlp_dim: int, samples: int) -> LayerConfig:
        """Configuration of the layers of the enhancer or of the decoder.

        Args:
            mlp_dim: hidden units of the MLPs.
            samples: points of deformable attention per head and level.
        """
        return LayerConfig(
            width=self.width,
            num_heads=self.num_heads,
            mlp_dim=mlp_dim,
            levels=self.num_levels,
            samples=samples,
            norm_epsilon=self.norm_epsilon,
            drop_path=self.fusion_drop_path,
        )


class Predictions(NamedTuple):
    """Results of all parts; B images, T tokens, S positions of all levels, Q queries.

    Attributes:
        text: features of the tokens before the enhancer (B, T, D).
        levels: feature levels before the enhancer, each (B, h, w, D).
        enhanced_image: outputs of the enhancer's layers (layers, B, S, D).
        enhanced_text: the same for the text (layers, B, T, D).
        position_logits: similarity of each position to each token (B, S, T).
        position_boxes: logits of the box at each position (B, S, 4).
        selected_logits: similarity of the selected positions to each token (B, Q, T).
        selected_boxes: their boxes, from which the queries start (B, Q, 4).
        queries: normalised outputs of the decoder's layers (layers, B, Q, D).
        boxes: boxes that each layer predicts (layers, B, Q, 4).
        logits: similarity of each box to each token (layers, B, Q, T).
    """

    text: Float[Array, "batch length width"]
    levels: list[Float[Array, "batch _rows _columns width"]]
    enhanced_image: Float[Array, "layers batch positions width"]
    enhanced_text: Float[Array, "layers batch length width"]
    position_logits: Float[Array, "batch positions length"]
    position_boxes: Float[Array, "batch positions 4"]
    selected_logits: Float[Array, "batch queries length"]
    selected_boxes: Float[Array, "batch queries 4"]
    queries: Float[Array, "layers2 batch queries width"]
    boxes: Float[Array, "layers2 batch queries 4"]
    logits: Float[Array, "layers2 batch queries length"]


class GroundingDino(nnx.Module):
    """Images and a caption of each to boxes, and to logits of the caption's tokens."""

    def __init__(
        self,
        config: GroundingDinoConfig,
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
            scan: whether to scan the layers or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        self.config, self.dtype = config, dtype
        layers: dict[str, Any] = {"scan": scan, "remat": remat, "dtype": dtype, "rngs": rngs}
        width = config.width
        self.image = Swin(config.image, **layers)
        self.text = Bert(config.text, **layers)
        self.text_projection = linear_layer(
            config.text.width, width, ("embed", "joint"), XAVIER, dtype, rngs
        )
        widths = [config.image.stages[i].width for i in config.stages]
        self.levels = LevelProjections(widths, config.num_levels, width, dtype=dtype, rngs=rngs)
        self.level_embed = nnx.Param(
            initializers.normal(1.0)(rngs.params(), (config.num_levels, width)),
            **metadata("levels", "embed", decay=False),
        )
        encoder = config.layer(config.encoder_mlp_dim, config.encoder_samples)
        decoder = config.layer(config.decoder_mlp_dim, config.decoder_samples)
        self.encoder = Encoder(encoder, config.encoder_depth, **layers)
        self.selection = QuerySelection(decoder, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(decoder, config.decoder_depth, config.num_queries, **layers)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        tokens: Int[Array, "batch length"],
        *,
        sizes: Int[Array, "batch 2"] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> dict[str, jax.Array]:
        """Detects objects by the phrases of captions.

        Args:
            images: (B, H, W, 3), normalised, of any H and W.
            tokens: ids of a caption for each image (B, T): [CLS], phrases that each end in ".",
                [SEP], and zeros as padding.
            sizes: height and width of each image, px (B, 2). The image is in the upper left corner
                of its input, and the rest is padding. None if there is no padding.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            float32 arrays by name: `boxes` (B, Q, 4), center x, center y, width, height in [0, 1]
            of the image without its padding, and `logits` (B, Q, T) of the tokens, the lowest
            finite number for padding.

        Raises:
            UserError: a caption that is too long, or an image with fewer positions than queries.
        """
        found = self.predict(images, tokens, sizes=sizes, rng=rng)
        return {"boxes": found.boxes[-1], "logits": found.logits[-1]}

    def predict(
        self,
        images: Float[Array, "batch height width 3"],
        tokens: Int[Array, "batch length"],
        *,
        sizes: Int[Array, "batch 2"] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> Predictions:
        """Computes the results of all parts, as losses of all layers need them.

        Args:
            images: see `__call__`.
            tokens: see `__call__`.
            sizes: see `__call__`.
            rng: PRNG key for training, or None for evaluation.
        """
        config = self.config
        image_rng, fusion_rng = (None, None) if rng is None else jax.random.split(rng)
        phrase_mask, positions = phrase_layout(tokens)
        text = self.embed_caption(tokens)
        text_mask = tokens > 0

        maps = self.levels(self.image.features(images, config.stages, rng=image_rng))
        levels = level_geometry(
            [(x.shape[1], x.shape[2]) for x in maps],
            full_sizes(images, sizes),
            (images.shape[1], images.shape[2]),
        )
        inputs = EncoderInputs(
            levels=levels,
            image_positions=self._level_positions(levels.split(levels.mask)),
            references=levels.centers()[:, :, None] * levels.ratios[:, None],
            text_mask=text_mask,
            phrase_mask=phrase_mask,
            text_positions=sine_positions(positions.astype(jnp.float32), config.width).astype(
                self.dtype
            ),
        )
        enhanced = self.encoder(flatten_maps(maps), text, inputs, fusion_rng)
        memory = Memory(enhanced[0][-1], enhanced[1][-1], levels, text_mask)
        position_logits, position_boxes = self.selection(memory)
        rows = self.decoder.select(position_logits)[..., None]
        selected_logits = jnp.take_along_axis(position_logits, rows, axis=1)
        selected_boxes = jax.nn.sigmoid(jnp.take_along_axis(position_boxes, rows, axis=1))
        queries, boxes = self.decoder(selected_boxes, memory)
        return Predictions(
            text=text,
            levels=maps,
            enhanced_image=enhanced[0],
            enhanced_text=enhanced[1],
            position_logits=position_logits,
            position_boxes=position_boxes,
            selected_logits=selected_logits,
            selected_boxes=selected_boxes,
            queries=queries,
            boxes=boxes,
            logits=memory.similarity(queries),
        )

    def embed_caption(
        self, tokens: Int[Array, "batch length"]
    ) -> Float[Array, "batch length width"]:
        """Computes the features of a caption's tokens before they see an image.

        Args:
            tokens: ids (B, T), see `__call__`.

        Returns:
            (B, T, D), compute type.

        Raises:
            UserError: more tokens than `text.context_length`.
        """
        mask, positions = phrase_layout(tokens)
        return self.text_projection(self.text(tokens, positions, mask))

    def layers_above(self) -> LayersAbove:
        """Counts the layers between each part and the output."""
        encoder, decoder = self.config.encoder_depth, self.config.decoder_depth
        above = encoder + decoder
        return {
            **nested("image", self.image, above),
            **nested("text", self.text, above),
            "text_projection": above,
            "levels": above,
            "level_embed": above,
            "encoder/blocks": range(above - 1, decoder - 1, -1),
            "selection": decoder,
            "decoder/queries": decoder,
            "decoder/blocks": range(decoder - 1, -1, -1),
        }

    def _level_positions(
        self, masks: list[Bool[Array, "batch _rows _columns"]]
    ) -> Float[Array, "batch positions width"]:
        """Embeddings of the position within a level, and of the level."""
        config = self.config
        encoded = [
            map_positions(mask, config.width, config.position_temperature) + embedding
            for mask, embedding in zip(masks, self.level_embed[...], strict=True)
        ]
        return flatten_maps(encoded).astype(self.dtype)
