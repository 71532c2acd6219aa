"""Two towers with one embedding space: CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.inputs.patches import Images
from vit_jax.models.clip.text import TextConfig, TextTransformer
from vit_jax.models.layers.parameters import LayersAbove, metadata, nested

# CLIP section 2.5: the temperature is clipped, so that logits are scaled by at most 100.
MAX_LOG_SCALE = math.log(100.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Architecture of a dual encoder.

    Attributes:
        image: architecture of the image tower.
        text: architecture of the text tower.
        embed_dim: size of the shared embedding space.
        image_projection: whether a linear layer follows the image tower. SigLIP has none, nor have
            CLIP's ResNets, whose attention pooling ends in the shared space.
        text_projection_bias: whether the linear layer of the text tower has a bias (SigLIP).
        init_logit_scale: initial logarithm of the scale of the cosine similarities.
        init_logit_bias: initial bias of the logits (SigLIP: -10); None for no bias (CLIP).
    """

    masks_padding: ClassVar[bool] = True  # of a `PatchSequence`

    image: Any
    text: TextConfig
    embed_dim: int = 512
    image_projection: bool = True
    text_projection_bias: bool = False
    init_logit_scale: float = math.log(1 / 0.07)
    init_logit_bias: float | None = None

    def make(self, **execution: Any) -> "CLIP":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `CLIP`.
        """
        return CLIP(self, **execution)


class CLIP(nnx.Module):
    """Image and text towers with projections and a learned, clipped temperature."""

    def __init__(
        self,
        config: CLIPConfig,
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
            scan: whether to scan the blocks or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.

        Raises:
            UserError: without an image projection, a tower whose width is not `embed_dim`.
        """
        self.config, self.dtype = config, dtype
        execution: dict[str, Any] = {"dtype": dtype, "scan": scan, "remat": remat, "rngs": rngs}
        self.image, self.text = self._make_towers(execution)
        if config.image_projection:
            self.image_projection = projection(
                self.image.embed_dim, config.embed_dim, dtype=dtype, rngs=rngs
            )
        elif self.image.embed_dim != config.embed_dim:
            raise UserError(
                f"without image_projection the image tower's width {self.image.embed_dim} must be "
                f"embed_dim={config.embed_dim}"
            )
        self.text_projection = projection(
            self.text.embed_dim,
            config.embed_dim,
            use_bias=config.text_projection_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.logit_scale = nnx.Param(
            jnp.asarray(config.init_logit_scale, jnp.float32),
            **metadata(decay=False),
            bounds=(0.0, MAX_LOG_SCALE),
        )
        if config.init_logit_bias is not None:
            self.logit_bias = nnx.Param(
                jnp.asarray(config.init_logit_bias, jnp.float32), **metadata(decay=False)
            )

    def _make_towers(self, execution: dict[str, Any]) -> tuple[Any, Any]:
        """Builds the towers of images and texts."""
        image = self.config.image.make(**execution)
        return image, TextTransformer(self.config.text, **execution)

    def encode_image(
        self,
        images: Images,
        *,
        normalize: bool = False,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch dim"]:
        """Computes image embeddings.

        Args:
            images: (B, H, W, 3), normalised; or a `PatchSequence`, where the tower takes it.
            normalize: whether to scale the embeddings to length 1.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, embed_dim), float32.
        """
        x = self.image.encode_image(images, rng=rng)
        return as_embedding(
            self.image_projection(x) if self.config.image_projection else x, normalize
        )

    def encode_text(
        self,
        tokens: Int[Array, "batch length"],
        *,
        normalize: bool = False,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch dim"]:
        """Computes text embeddings.

        Args:
            tokens: ids (B, context_length), padded after the end of text.
            normalize: whether to scale the embeddings to length 1.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, embed_dim), float32.
        """
        return as_embedding(self.text_projection(self.text.encode_text(tokens, rng=rng)), normalize)

    def features(self, images: Images, layers: Sequence[int]) -> list[Float[Array, "batch ..."]]:
        """Computes intermediate outputs of the image tower, see its own `features`.

        The text tower's are `model.text.features(tokens, layers)`.

        Args:
            images: (B, H, W, 3), normalised.
            layers: indices of blocks or stages; negative ones count from the last.
        """
        return self.image.features(images, layers)

    def layers_above(self) -> LayersAbove:
        """Counts the layers above each part, within its own tower."""
        return {**nested("image", self.image), **nested("text", self.text)}

    def logit_parameters(self) -> tuple[Float[Array, ""], Float[Array, ""] | None]:
        """Returns the scale and the bias of the logits, scalars; the bias is None for CLIP."""
        has_bias = self.config.init_logit_bias is not None
        return jnp.exp(self.logit_scale[...]), (self.logit_bias[...] if has_bias else None)


def projection(
    width: int, embed_dim: int, *, use_bias: bool = False, dtype: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    """Builds the projection of a tower into the shared embedding space.

    Args:
        width: number of features of the tower.
        embed_dim: size of the embedding space.
        use_bias: whether there is a bias.
        dtype: compute type.
        rngs: source of the parameters' keys.
    """
    return nnx.Linear(
        width,
        embed_dim,
        use_bias=use_bias,
        kernel_init=initializers.normal(width**-0.5),
        kernel_metadata=metadata("embed", "joint"),
        bias_metadata=metadata("joint", decay=False),
        dtype=dtype,
        rngs=rngs,
    )


def as_embedding(x: Float[Array, "*batch dim"], normalize: bool) -> Float[Array, "*batch dim"]:
    """Converts features to float32, and scales them to length 1 if asked to.

    Args:
        x: features (..., D).
        normalize: whether to scale.
    """
    x = x.astype(jnp.float32)
    if not normalize:
        return x
    # The epsilon is under the root: the gradient at zero is finite.
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
