"""Fusion of image and text: attention in both directions (Li et al. 2022, "GLIP", section 3.2)."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Key

from vit_jax.models.layers.attention import heads_projection, output_projection
from vit_jax.models.layers.drop_path import drop_path
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.transformer import LayerScale
from vit_jax.models.ops.attention import attention

XAVIER = initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Configuration of a fusion.

    Attributes:
        image_width: number of features of the image D.
        text_width: number of features of the text E.
        inner_width: number of features of all heads.
        num_heads: attention heads; divides `inner_width`.
        scale: initial factor of both residual branches.
        norm_epsilon: epsilon of LayerNorm.
        drop_path: stochastic depth.
    """

    image_width: int
    text_width: int
    inner_width: int
    num_heads: int
    scale: float
    norm_epsilon: float = 1e-5
    drop_path: float = 0.0


class FusionSide(nnx.Module):
    """Projections of the image or of the text for the fusion of both."""

    def __init__(self, config: FusionConfig, width: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layers.

        Args:
            config: configuration of the fusion.
            width: number of features of this side.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        heads, inner = config.num_heads, config.inner_width
        common: dict[str, Any] = {"init": XAVIER, "dtype": dtype, "rngs": rngs}
        self.norm = layer_norm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
        self.key = heads_projection(width, heads, out_width=inner, **common)
        self.value = heads_projection(width, heads, out_width=inner, **common)
        self.out = output_projection(inner, heads, out_width=width, **common)
        self.scale = LayerScale(width, config.scale, dtype)


class Fusion(nnx.Module):
    """Attention of the image to the text and of the text to the image, by the same scores.

    The residual adds to the normalised features. Scores are not clipped: the original code limits
    them to 50,000 because they overflow in float16, which is no compute type here.
    """

    def __init__(self, config: FusionConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the layer.

        Args:
            config: configuration.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.image = FusionSide(config, config.image_width, dtype=dtype, rngs=rngs)
        self.text = FusionSide(config, config.text_width, dtype=dtype, rngs=rngs)
        self.drop_path = config.drop_path

    def __call__(
        self,
        image: Float[Array, "batch positions width"],
        text: Float[Array, "batch length text_width"],
        text_mask: Bool[Array, "batch length"],
        image_mask: Bool[Array, "batch positions"] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch positions width"], Float[Array, "batch length text_width"]]:
        """Exchanges features of the image and of the text.

        Args:
            image: (B, S, D).
            text: (B, T, E).
            text_mask: whether a token exists (B, T).
            image_mask: whether a position belongs to the image (B, S); None if all do.
            rng: PRNG key for stochastic depth, or None for evaluation.
        """
        image, text = self.image.norm(image), self.text.norm(text)
        image_key, text_key = self.image.key(image), self.text.key(text)
        of_image = None if image_mask is None else image_mask[:, None, None]
        of_text = text_mask[:, None, None]
        to_image = attention(image_key, text_key, self.text.value(text), mask=of_text)
        to_text = attention(text_key, image_key, self.image.value(image), mask=of_image)
        to_image = self.image.scale(self.image.out(to_image))
        to_text = self.text.scale(self.text.out(to_text))
        keys = (None, None) if rng is None else jax.random.split(rng)
        return (
            image + drop_path(to_image, self.drop_path, keys[0]),
            text + drop_path(to_text, self.drop_path, keys[1]),
        )
