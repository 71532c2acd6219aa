"""Deep fusion (Li et al. 2022, section 3.2): image and text fuse before each layer of both."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from vit_jax.models.bert.model import BertConfig
from vit_jax.models.glip.dynamic import DynamicBlock
from vit_jax.models.layers.fusion import Fusion, FusionConfig
from vit_jax.models.layers.maps import flatten_maps, split_maps
from vit_jax.models.layers.parameters import TORCH_INIT
from vit_jax.models.layers.post_norm import PostNormBlock
from vit_jax.models.layers.stacking import Stack
from vit_jax.models.partitioning import constrain
from vit_jax.models.sizes import Size

Pair = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Configuration of the tower.

    Attributes:
        width: number of features of the image D.
        depth: number of layers.
        text: configuration of the layers of the text.
        fusion_heads: attention heads of the fusion.
        fusion_width: number of features of these heads.
    """

    width: int
    depth: int
    text: BertConfig
    fusion_heads: int
    fusion_width: int


class TowerLayer(nnx.Module):
    """Fusion, then a layer of BERT for the text and a dynamic block for the image."""

    def __init__(self, config: TowerConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layer.

        Args:
            config: configuration.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        text, execution = config.text, {"dtype": dtype, "rngs": rngs}
        fusion = FusionConfig(
            image_width=config.width,
            text_width=text.width,
            inner_width=config.fusion_width,
            num_heads=config.fusion_heads,
            scale=1 / config.depth,
        )
        self.fusion = Fusion(fusion, **execution)
        self.text = PostNormBlock(
            text.width,
            text.num_heads,
            text.mlp_dim,
            activation=text.activation,
            norm_epsilon=text.norm_epsilon,
            init=TORCH_INIT,  # which the original code keeps
            **execution,
        )
        self.image = DynamicBlock(config.width, **execution)

    def __call__(
        self,
        image: Float[Array, "batch positions width"],
        text: Float[Array, "batch length text_width"],
        text_mask: Bool[Array, "batch length"],
        sizes: tuple[Size, ...],
    ) -> tuple[Float[Array, "batch positions width"], Float[Array, "batch length text_width"]]:
        """Applies the layer; see `Tower`."""
        image = constrain(image, "batch", "length", "embed")
        image, text = self.fusion(image, text, text_mask)
        text = self.text(text, attend_to(text_mask))
        image = flatten_maps(self.image(split_maps(image, sizes)))
        return constrain(image, "batch", "length", "embed"), text


class Tower(Stack):
    """Stack of `TowerLayer`."""

    def __init__(
        self, config: TowerConfig, *, scan: bool, remat: str, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Builds the stack.

        Args:
            config: configuration.
            scan: whether to scan the layers.
            remat: key of `layers.stacking.REMAT_POLICIES`.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """

        def make_layer(rngs: nnx.Rngs) -> TowerLayer:
            return TowerLayer(config, dtype=dtype, rngs=rngs)

        super().__init__(make_layer, config.depth, scan=scan, remat=remat, rngs=rngs)

    def __call__(
        self,
        image: Float[Array, "batch positions width"],
        text: Float[Array, "batch length text_width"],
        text_mask: Bool[Array, "batch length"],
        sizes: tuple[Size, ...],
    ) -> tuple[
        Float[Array, "depth batch positions width"], Float[Array, "depth batch length text_width"]
    ]:
        """Computes the outputs of all layers, of which unused ones are not stored.

        Args:
            image: positions of all levels (B, S, D).
            text: features of the tokens (B, T, E).
            text_mask: whether a token exists (B, T).
            sizes: rows and columns of each level.
        """

        def apply_layer(layer: TowerLayer, x: Pair) -> tuple[Pair, Pair]:
            x = layer(*x, text_mask, sizes)
            return x, x

        found: Pair = self.apply_blocks(apply_layer, (image, text))[1]
        return found


def attend_to(text_mask: Bool[Array, "batch length"]) -> Bool[Array, "batch length length"]:
    """Mask by which every token attends to those that exist."""
    length = text_mask.shape[1]
    return jax.numpy.broadcast_to(text_mask[:, None], (len(text_mask), length, length))
