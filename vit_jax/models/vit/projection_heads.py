"""Projection heads of a ViT for self-distillation (Caron et al. 2021, DINO; Zhou et al., iBOT)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.layers.heads import linear_layer
from vit_jax.models.layers.mlp import ACTIVATIONS
from vit_jax.models.layers.parameters import metadata
from vit_jax.models.vit.model import ViT, ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Sizes of projection heads; a base of the dataclass of an architecture.

    Attributes:
        head_dim: hidden units of the heads' MLPs.
        bottleneck: width D of the embeddings that are compared with prototypes.
        prototypes: number of prototypes K of the pooled features.
        patch_bottleneck: width of the embeddings of patches, for a head of their own.
        patch_prototypes: number of prototypes of patches; 0: patches and pooled features share a
            head.
    """

    head_dim: int = 2048
    bottleneck: int = 256
    prototypes: int = 65_536
    patch_bottleneck: int = 256
    patch_prototypes: int = 0


class ProjectionHeads(nnx.Module):
    """The part of a model that projects pooled features and patches of its ViT.

    Attributes:
        image: the ViT.
        head: head of the pooled features.
        mask_token: replaces masked patches.
        class_centre: running mean (K,) of the teacher's logits of pooled features, which the
            student stores as batch norms store their statistics.
        patch_centre: that of masked patches.
    """

    image: ViT
    config: Any

    def _make_heads(self, dtype: Any, rngs: nnx.Rngs, *, decay: bool = True) -> None:
        """Creates the mask token, the heads and the centres.

        `decay` says whether weight decay applies to the heads.
        """
        config, width = self.config, self.image.config.width
        self.mask_token = nnx.Param(
            jnp.zeros((1, width)), **metadata("prefix", "embed", decay=False)
        )
        options = {"dtype": dtype, "rngs": rngs, "decay": decay}
        sizes = config.head_dim, config.bottleneck, config.prototypes
        self.head = Head(width, *sizes, **options)
        if config.patch_prototypes:
            sizes = config.head_dim, config.patch_bottleneck, config.patch_prototypes
            self.own_patch_head = Head(width, *sizes, **options)
        # Pooled features and patches have centres of their own, also with one head (iBOT).
        self.class_centre = _centre(config.prototypes)
        self.patch_centre = _centre(config.patch_prototypes or config.prototypes)

    @property
    def patch_head(self) -> "Head":
        """The head of patches, which may be that of the pooled features."""
        return self.own_patch_head if self.config.patch_prototypes else self.head

    def encode_tokens(
        self,
        images: Float[Array, "batch height width 3"],
        mask: Bool[Array, "batch patches"] | None = None,
        *,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch patches dim"]]:
        """Computes the pooled features, as the class token, and the normalised patches.

        Args:
            images: (B, H, W, 3), normalised.
            mask: patches that the mask token replaces before the first block (iBOT), or None.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, width) and (B, h w, width), compute type.
        """
        replaced = None if mask is None else (mask, self.mask_token[...])
        return self.image.encode_patches_and_pool(images, rng=rng, replaced=replaced)


class Head(nnx.Module):
    """MLP, normalisation to unit length, and prototypes of unit length (DINO, appendix C).

    Attributes:
        kernel: prototypes (D, K). Only their directions count: the weight-normalised last layer of
            the authors' code with its factors fixed at 1.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        bottleneck: int,
        prototypes: int,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
        decay: bool = True,
    ) -> None:
        """Builds the head.

        Args:
            width: number of input features.
            hidden: hidden units of the MLP.
            bottleneck: width D of the embeddings.
            prototypes: number of prototypes K.
            dtype: compute type.
            rngs: source of the parameters' keys.
            decay: whether weight decay applies to the matrices.
        """
        self.dtype = dtype

        def linear(inputs: int, outputs: int, axes: tuple[str, str]) -> nnx.Linear:
            init = initializers.normal(0.02)
            return linear_layer(inputs, outputs, axes, init, dtype, rngs, decay=decay)

        self.fc1 = linear(width, hidden, ("embed", "mlp"))
        self.fc2 = linear(hidden, hidden, ("mlp", "embed"))
        self.fc3 = linear(hidden, bottleneck, ("embed", "bottleneck"))
        self.kernel = nnx.Param(
            initializers.normal(bottleneck**-0.5)(rngs.params(), (bottleneck, prototypes)),
            **metadata("embed", "vocab", decay=decay),
        )

    def __call__(self, x: Float[Array, "*tokens width"]) -> Float[Array, "*tokens bottleneck"]:
        """Computes embeddings of unit length, compute type.

        Args:
            x: pooled features or patches (..., width).
        """
        gelu = ACTIVATIONS["gelu"]
        return _unit(self.fc3(gelu(self.fc2(gelu(self.fc1(x))))), -1).astype(self.dtype)

    def prototypes(self) -> Float[Array, "bottleneck prototypes"]:
        """Returns the prototypes, of unit length, compute type."""
        return _unit(self.kernel[...], 0).astype(self.dtype)


def check_no_dropout(image: ViTConfig) -> None:
    """Refuses a ViT that drops patches, as masks count all of them.

    Raises:
        UserError: `patch_dropout` is not 0.
    """
    if image.patch_dropout:
        raise UserError(
            f"image.patch_dropout={image.patch_dropout}: expected 0, as masks count all patches"
        )


def _centre(prototypes: int) -> nnx.BatchStat:
    about = metadata("vocab", decay=False)
    return nnx.BatchStat(jnp.zeros((prototypes,), jnp.float32), **about, trainable=False)


def _unit(x: Array, axis: int) -> Array:
    """Scales vectors to unit length, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), 1e-6)
