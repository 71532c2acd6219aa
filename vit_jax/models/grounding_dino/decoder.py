"""Query selection and cross-modality decoder (Liu et al. 2023, sections 3.2 and 3.3)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int

from vit_jax.errors import UserError
from vit_jax.models.grounding_dino.deformable import DeformableAttention
from vit_jax.models.grounding_dino.encoder import ACTIVATION, LayerConfig, Pair
from vit_jax.models.grounding_dino.levels import Levels
from vit_jax.models.grounding_dino.positions import box_positions
from vit_jax.models.layers.attention import CrossAttention
from vit_jax.models.layers.fusion import XAVIER
from vit_jax.models.layers.heads import MlpHead, linear_layer
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import metadata
from vit_jax.models.layers.stacking import Stack
from vit_jax.models.partitioning import constrain

_MARGIN = 1e-5  # keeps logits of boxes finite at the border of the image
_PROPOSAL = 0.05  # side of a proposal on the first level, as a fraction of the image
_BORDER = 0.01  # coordinates of proposals lie this far within [0, 1]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Features that queries attend to.

    Attributes:
        image: enhanced features of the image (B, S, D).
        text: enhanced features of the text (B, T, D).
        levels: geometry of the levels.
        text_mask: whether a token exists (B, T).
    """

    image: Float[Array, "batch positions width"]
    text: Float[Array, "batch length width"]
    levels: Levels
    text_mask: Bool[Array, "batch length"]

    def similarity(self, x: Float[Array, "... boxes width"]) -> Float[Array, "... boxes length"]:
        """Computes logits, float32: the dot products of features (..., B, Q, D) with each token.

        Those of tokens that do not exist are the lowest finite number.
        """
        products = jnp.einsum(
            "...bqd,btd->...bqt", x, self.text, preferred_element_type=jnp.float32
        )
        return jnp.where(self.text_mask[:, None], products, jnp.finfo(jnp.float32).min)


def logit(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Inverse of the sigmoid, for numbers that are first moved a little inside [0, 1]."""
    x = jnp.clip(x, _MARGIN, 1 - _MARGIN)
    return jnp.log(x / (1 - x))


class QuerySelection(nnx.Module):
    """Proposes a box at each position, and selects those that are most similar to a token."""

    def __init__(self, config: LayerConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layers.

        Args:
            config: configuration of the decoder.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        width = config.width
        self.projection = linear_layer(width, width, ("embed", "mlp"), XAVIER, dtype, rngs)
        self.norm = layer_norm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
        self.box_head = MlpHead(width, 4, activation=ACTIVATION, dtype=dtype, rngs=rngs)

    def __call__(
        self, memory: Memory
    ) -> tuple[Float[Array, "batch positions length"], Float[Array, "batch positions 4"]]:
        """Computes the similarity of each position to each token, and its box.

        Args:
            memory: features of image and text.

        Returns:
            Logits (B, S, T), and logits of center x, center y, width, height (B, S, 4), infinite at
            padding and at the border, float32.
        """
        proposals = _proposals(memory.levels)
        inside = jnp.all((proposals > _BORDER) & (proposals < 1 - _BORDER), axis=-1, keepdims=True)
        valid = inside & memory.levels.mask[..., None]
        x = jnp.where(valid, memory.image, jnp.zeros((), memory.image.dtype))
        x = self.norm(self.projection(x))
        centered = jnp.where(valid, proposals, 0.5)
        boxes = self.box_head(x) + jnp.log(centered / (1 - centered))
        return memory.similarity(x), jnp.where(valid, boxes, jnp.inf)


def _proposals(levels: Levels) -> Float[Array, "batch positions 4"]:
    """A box at each position, whose size depends on the level."""
    sides = np.concatenate([
        np.full(rows * columns, _PROPOSAL * 2**level, np.float32)
        for level, (rows, columns) in enumerate(levels.sizes)
    ])  # fmt: skip
    centers = levels.centers()
    sizes = jnp.broadcast_to(sides[:, None], centers.shape)
    return jnp.concatenate([centers, sizes], axis=-1)


class DecoderLayer(nnx.Module):
    """Self-attention of queries, attention to the text, deformable attention, MLP; post-norm."""

    def __init__(self, config: LayerConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layer.

        Args:
            config: configuration of the layer.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        width, heads = config.width, config.num_heads
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        norm: dict[str, Any] = {"epsilon": config.norm_epsilon, **execution}
        self.self_attention = CrossAttention(width, heads, init=XAVIER, **execution)
        self.norm1 = layer_norm(width, **norm)
        self.text_attention = CrossAttention(width, heads, init=XAVIER, **execution)
        self.norm2 = layer_norm(width, **norm)
        self.image_attention = DeformableAttention(
            width, heads, config.levels, config.samples, **execution
        )
        self.norm3 = layer_norm(width, **norm)
        self.mlp = config.make_mlp(**execution)
        self.norm4 = layer_norm(width, **norm)

    def __call__(
        self,
        x: Float[Array, "batch queries width"],
        positions: Float[Array, "batch queries width"],
        references: Float[Array, "batch queries levels 4"],
        memory: Memory,
    ) -> Float[Array, "batch queries width"]:
        """Applies the layer.

        Args:
            x: queries (B, Q, D).
            positions: position embeddings of the queries (B, Q, D).
            references: box of each query on each level (B, Q, L, 4).
            memory: features of image and text.
        """
        x = constrain(x, "batch", "length", "embed")
        queries = x + positions
        x = self.norm1(x + self.self_attention(queries, queries, x))
        mask = memory.text_mask[:, None, None]
        x = self.norm2(x + self.text_attention(x + positions, memory.text, memory.text, mask))
        attended = self.image_attention(x + positions, memory.image, memory.levels, references)
        x = self.norm3(x + attended)
        x = self.norm4(x + self.mlp(x))
        return constrain(x, "batch", "length", "embed")


class Decoder(Stack):
    """Queries to boxes, which each layer refines."""

    def __init__(
        self,
        config: LayerConfig,
        depth: int,
        num_queries: int,
        *,
        scan: bool,
        remat: str,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layers.

        Args:
            config: configuration of the layers.
            depth: number of layers.
            num_queries: number of queries Q.
            scan: whether to scan the layers.
            remat: key of `layers.stacking.REMAT_POLICIES`.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.dtype, self.width = dtype, config.width
        width = config.width
        self.queries = nnx.Param(
            initializers.normal(1.0)(rngs.params(), (num_queries, width)),
            **metadata("queries", "embed", decay=False),
        )
        self.position1 = linear_layer(2 * width, width, ("boxes", "embed"), XAVIER, dtype, rngs)
        self.position2 = linear_layer(width, width, ("mlp", "embed"), XAVIER, dtype, rngs)
        self.box_head = MlpHead(width, 4, activation=ACTIVATION, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)

        def make_layer(rngs: nnx.Rngs) -> DecoderLayer:
            return DecoderLayer(config, dtype=dtype, rngs=rngs)

        super().__init__(make_layer, depth, scan=scan, remat=remat, rngs=rngs)

    def select(self, logits: Float[Array, "batch positions length"]) -> Int[Array, "batch queries"]:
        """Selects the positions that are most similar to any token, the most similar ones first.

        Args:
            logits: similarity of each position to each token (B, S, T).

        Raises:
            UserError: fewer positions than queries.
        """
        count, found = len(self.queries[...]), logits.shape[1]
        if count > found:
            raise UserError(
                f"num_queries={count}: expected at most the number of positions of all feature "
                f"levels, which is {found} for these images"
            )
        return jax.lax.top_k(jnp.max(logits, axis=-1), count)[1]

    def __call__(
        self, boxes: Float[Array, "batch queries 4"], memory: Memory
    ) -> tuple[Float[Array, "depth batch queries width"], Float[Array, "depth batch queries 4"]]:
        """Refines boxes. No gradients pass from layer to layer, nor to the selected boxes.

        Args:
            boxes: selected boxes in [0, 1], (B, Q, 4).
            memory: features of image and text.

        Returns:
            Normalised features of the queries after each layer, and the boxes that each layer
            predicts, center x, center y, width and height in [0, 1], float32.
        """
        boxes = jax.lax.stop_gradient(boxes)
        ratios = jnp.tile(memory.levels.ratios, 2)[:, None]

        def apply_layer(layer: DecoderLayer, state: Pair) -> tuple[Pair, Pair]:
            x, boxes = state
            references = boxes[:, :, None] * ratios
            positions = self._positions(references[:, :, 0])
            x = layer(x, positions, references, memory)
            refined = jax.nn.sigmoid(self.box_head(x) + logit(boxes))
            return (x, jax.lax.stop_gradient(refined)), (x, boxes)

        queries = self.queries[...].astype(self.dtype)
        queries = jnp.broadcast_to(queries, (len(boxes), *queries.shape))
        _, (x, before) = self.apply_blocks(apply_layer, (queries, boxes))
        x = self.norm(x)
        return x, jax.nn.sigmoid(self.box_head(x) + logit(before))

    def _positions(self, boxes: jax.Array) -> jax.Array:
        """Position embeddings of boxes (B, Q, D)."""
        encoded = box_positions(boxes, self.width // 2).astype(self.dtype)
        return self.position2(jax.nn.relu(self.position1(encoded)))
