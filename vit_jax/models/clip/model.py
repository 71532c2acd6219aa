"""Two towers in one embedding space: CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError
from vit_jax.models.clip.text import TextConfig, TextTransformer
from vit_jax.models.layers.parameters import LayersAbove, metadata, nested

# CLIP section 2.5: the temperature is kept from scaling logits by more than 100.
MAX_LOG_SCALE = math.log(100.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Architecture of a pair of towers.

    Attributes:
        image: architecture of the image tower.
        text: text tower.
        embed_dim: size of the shared embedding space.
        image_projection: whether a linear layer follows the image tower; not in SigLIP, nor in
            CLIP's ResNets, whose attention pooling ends in the shared space.
        text_projection_bias: whether the text tower's linear layer has a bias (SigLIP).
        init_logit_scale: initial log of the scale of the cosine similarities.
        init_logit_bias: initial bias of the logits (SigLIP: -10); None for none (CLIP).
    """

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
    ):
        self.config, self.dtype = config, dtype
        execution: dict[str, Any] = {"dtype": dtype, "scan": scan, "remat": remat, "rngs": rngs}
        self.image = config.image.make(**execution)
        self.text = TextTransformer(config.text, **execution)
        if config.image_projection:
            self.image_projection = self._projection(self.image.embed_dim, False, rngs)
        elif self.image.embed_dim != config.embed_dim:
            raise UserError(
                f"without image_projection the image tower's width {self.image.embed_dim} must be "
                f"embed_dim={config.embed_dim}"
            )
        self.text_projection = self._projection(
            self.text.embed_dim, config.text_projection_bias, rngs
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

    def _projection(self, width: int, use_bias: bool, rngs: nnx.Rngs) -> nnx.Linear:
        return nnx.Linear(
            width,
            self.config.embed_dim,
            use_bias=use_bias,
            kernel_init=initializers.normal(width**-0.5),
            kernel_metadata=metadata("embed", "joint"),
            bias_metadata=metadata("joint", decay=False),
            dtype=self.dtype,
            rngs=rngs,
        )

    def encode_image(
        self, images: jax.Array, *, normalize: bool = False, rng: jax.Array | None = None
    ) -> jax.Array:
        """Image embeddings (B, embed_dim), float32; of length 1 with `normalize`."""
        x = self.image.encode_image(images, rng=rng)
        return _embedding(
            self.image_projection(x) if self.config.image_projection else x, normalize
        )

    def encode_text(
        self, tokens: jax.Array, *, normalize: bool = False, rng: jax.Array | None = None
    ) -> jax.Array:
        """Text embeddings (B, embed_dim), float32; of length 1 with `normalize`."""
        return _embedding(self.text_projection(self.text.encode_text(tokens, rng=rng)), normalize)

    def features(self, images: jax.Array, layers: Sequence[int]) -> list[jax.Array]:
        """Intermediate outputs of the image tower, see there; `text.features` has the other's."""
        return self.image.features(images, layers)

    def layers_above(self) -> LayersAbove:
        """Those of each tower for itself."""
        return {**nested("image", self.image), **nested("text", self.text)}

    def logit_parameters(self) -> tuple[jax.Array, jax.Array | None]:
        """Scale (exponentiated) and bias of the logits, scalars; the bias is None for CLIP."""
        has_bias = self.config.init_logit_bias is not None
        return jnp.exp(self.logit_scale[...]), (self.logit_bias[...] if has_bias else None)


def _embedding(x: jax.Array, normalize: bool) -> jax.Array:
    x = x.astype(jnp.float32)
    if not normalize:
        return x
    # The epsilon stands under the root, so that the gradient at zero is finite.
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
