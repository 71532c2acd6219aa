"""Feature enhancer: image and text attend to each other (Liu et al. 2023, section 3.1)."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from vit_jax.models.grounding_dino.deformable import DeformableAttention
from vit_jax.models.grounding_dino.levels import Levels
from vit_jax.models.layers.fusion import XAVIER, Fusion, FusionConfig
from vit_jax.models.layers.mlp import Mlp
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.post_norm import PostNormBlock
from vit_jax.models.layers.stacking import Stack
from vit_jax.models.partitioning import constrain

ACTIVATION = "relu"
_LAYER_SCALE = 1e-4

Pair = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Configuration that the layers of the enhancer and of the decoder share.

    Attributes:
        width: number of features D.
        num_heads: attention heads; an even number for the enhancer, whose text has half of them.
        mlp_dim: hidden units of the MLPs; those of the text are half of it.
        levels: number of feature levels L.
        samples: points of deformable attention per head and level.
        norm_epsilon: epsilon of LayerNorm.
        drop_path: stochastic depth of the fusion.
    """

    width: int
    num_heads: int
    mlp_dim: int
    levels: int
    samples: int
    norm_epsilon: float
    drop_path: float = 0.0

    def make_mlp(self, *, dtype: Any, rngs: nnx.Rngs) -> Mlp:
        """Builds the MLP of a layer.

        Args:
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        init: dict[str, Any] = {"in_init": XAVIER, "out_init": XAVIER}
        return Mlp(self.width, self.mlp_dim, activation=ACTIVATION, **init, dtype=dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class EncoderInputs:
    """Inputs of all layers of the enhancer.

    Attributes:
        levels: geometry of the levels.
        image_positions: position and level embeddings (B, S, D).
        references: reference points of the positions on each level (B, S, L, 2).
        text_mask: whether a token exists (B, T).
        phrase_mask: whether a token attends to another (B, T, T).
        text_positions: position embeddings within phrases (B, T, D).
    """

    levels: Levels
    image_positions: Float[Array, "batch positions width"]
    references: Float[Array, "batch positions levels 2"]
    text_mask: Bool[Array, "batch length"]
    phrase_mask: Bool[Array, "batch length length"]
    text_positions: Float[Array, "batch length width"]


class EncoderLayer(nnx.Module):
    """Fusion, self-attention of the text, deformable self-attention of the image."""

    def __init__(self, config: LayerConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layer.

        Args:
            config: configuration of the layer.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        width = config.width
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        norm: dict[str, Any] = {"epsilon": config.norm_epsilon, **execution}
        fusion = FusionConfig(
            image_width=width,
            text_width=width,
            inner_width=config.mlp_dim // 2,
            num_heads=config.num_heads // 2,
            scale=_LAYER_SCALE,
            norm_epsilon=config.norm_epsilon,
            drop_path=config.drop_path,
        )
        self.fusion = Fusion(fusion, **execution)
        self.text = PostNormBlock(
            width,
            config.num_heads // 2,
            config.mlp_dim // 2,
            activation=ACTIVATION,
            norm_epsilon=config.norm_epsilon,
            init=XAVIER,
            **execution,
        )
        self.attention = DeformableAttention(
            width, config.num_heads, config.levels, config.samples, **execution
        )
        self.norm1 = layer_norm(width, **norm)
        self.mlp = config.make_mlp(**execution)
        self.norm2 = layer_norm(width, **norm)

    def __call__(
        self,
        image: Float[Array, "batch positions width"],
        text: Float[Array, "batch length width"],
        inputs: EncoderInputs,
        rng: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "batch positions width"], Float[Array, "batch length width"]]:
        """Applies the layer.

        Args:
            image: (B, S, D).
            text: (B, T, D).
            inputs: masks, positions and reference points.
            rng: PRNG key for stochastic depth, or None for evaluation.
        """
        image = constrain(image, "batch", "length", "embed")
        image, text = self.fusion(image, text, inputs.text_mask, inputs.levels.mask, rng)
        text = self.text(text, inputs.phrase_mask, inputs.text_positions)
        queries = image + inputs.image_positions
        attended = self.attention(queries, image, inputs.levels, inputs.references)
        image = self.norm1(image + attended)
        image = self.norm2(image + self.mlp(image))
        return constrain(image, "batch", "length", "embed"), text


class Encoder(Stack):
    """Stack of `EncoderLayer`."""

    def __init__(
        self,
        config: LayerConfig,
        depth: int,
        *,
        scan: bool,
        remat: str,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the stack.

        Args:
            config: configuration of the layers.
            depth: number of layers.
            scan: whether to scan the layers.
            remat: key of `layers.stacking.REMAT_POLICIES`.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """

        def make_layer(rngs: nnx.Rngs) -> EncoderLayer:
            return EncoderLayer(config, dtype=dtype, rngs=rngs)

        super().__init__(make_layer, depth, scan=scan, remat=remat, rngs=rngs)

    def __call__(
        self,
        image: Float[Array, "batch positions width"],
        text: Float[Array, "batch length width"],
        inputs: EncoderInputs,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[
        Float[Array, "depth batch positions width"], Float[Array, "depth batch length width"]
    ]:
        """Computes the outputs of all layers, of which unused ones are not stored.

        Args:
            image: (B, S, D).
            text: (B, T, D).
            inputs: masks, positions and reference points.
            rng: PRNG key for stochastic depth, or None for evaluation.
        """
        keys = None if rng is None else jax.random.split(rng, self.depth)

        def apply_layer(layer: EncoderLayer, x: Pair, key: jax.Array | None) -> tuple[Pair, Pair]:
            x = layer(*x, inputs, key)
            return x, x

        found: Pair = self.apply_blocks(apply_layer, (image, text), keys)[1]
        return found
