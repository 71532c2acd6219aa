"""A ViT with projection heads (Caron et al. 2021, DINO; Zhou et al. 2022, iBOT; DINOv2)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.layers.heads import linear_layer
from vit_jax.models.layers.mlp import ACTIVATIONS
from vit_jax.models.layers.parameters import LayersAbove, metadata
from vit_jax.models.vit.backbone import ViTBackbone
from vit_jax.models.vit.model import ViT, ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOConfig:
    """Architecture of a backbone with projection heads.

    Attributes:
        image: architecture of the backbone, a ViT without a classification head.
        head_dim: hidden units of the heads' MLPs.
        bottleneck: width D of the embeddings that are compared with prototypes.
        prototypes: number of prototypes K of the class token.
        patch_bottleneck: width of the embeddings of patches, for a head of their own.
        patch_prototypes: number of prototypes of patches; 0: patches and class token share a head.
    """

    image: ViTConfig
    head_dim: int = 2048
    bottleneck: int = 256
    prototypes: int = 65_536
    patch_bottleneck: int = 256
    patch_prototypes: int = 0

    def make(self, **execution: Any) -> "DINO":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `DINO`.
        """
        return DINO(self, **execution)

    def __post_init__(self) -> None:
        """Checks the backbone."""
        if self.image.num_classes or self.image.pool != "class":
            raise UserError(
                "self-distillation compares class tokens: expected image.pool='class' and "
                f"image.num_classes=0; found pool={self.image.pool!r}, "
                f"num_classes={self.image.num_classes}"
            )
        if self.image.patch_dropout:
            raise UserError(
                f"image.patch_dropout={self.image.patch_dropout}: expected 0, as masks count all "
                "patches"
            )


class DINO(ViTBackbone):
    """The network of both student and teacher.

    Attributes:
        class_centre: running mean (K,) of the teacher's logits of class tokens, which the student
            stores as batch norms store their statistics.
        patch_centre: that of masked patches.
    """

    def __init__(
        self,
        config: DINOConfig,
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
        """
        self.config, width = config, config.image.width
        self.image = ViT(config.image, dtype=dtype, scan=scan, remat=remat, rngs=rngs)
        self.mask_token = nnx.Param(
            jnp.zeros((1, width)), **metadata("prefix", "embed", decay=False)
        )
        sizes = config.head_dim, config.bottleneck, config.prototypes
        self.head = Head(width, *sizes, dtype=dtype, rngs=rngs)
        if config.patch_prototypes:
            sizes = config.head_dim, config.patch_bottleneck, config.patch_prototypes
            self.own_patch_head = Head(width, *sizes, dtype=dtype, rngs=rngs)
        # Class tokens and patches have centres of their own, also with one head (iBOT).
        self.class_centre = _centre(config.prototypes)
        self.patch_centre = _centre(config.patch_prototypes or config.prototypes)

    @property
    def patch_head(self) -> "Head":
        """The head of patches, which may be that of the class token."""
        return self.own_patch_head if self.config.patch_prototypes else self.head

    def encode_tokens(
        self,
        images: Float[Array, "batch height width 3"],
        mask: Bool[Array, "batch patches"] | None = None,
        *,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch patches dim"]]:
        """Computes the normalised class token and patches.

        Args:
            images: (B, H, W, 3), normalised.
            mask: patches that the mask token replaces before the first block (iBOT), or None.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, width) and (B, h w, width), compute type.
        """
        replaced = None if mask is None else (mask, self.mask_token[...])
        return self.image.encode_patches_and_pool(images, rng=rng, replaced=replaced)

    def layers_above(self) -> LayersAbove:
        """Counts the layers above each part of the backbone; the projection counts as its head."""
        return {**super().layers_above(), "mask_token": self.config.image.depth + 1}


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
    ) -> None:
        """Builds the head.

        Args:
            width: number of input features.
            hidden: hidden units of the MLP.
            bottleneck: width D of the embeddings.
            prototypes: number of prototypes K.
            dtype: compute type.
            rngs: source of the parameters' keys.
        """
        self.dtype = dtype
        init = initializers.normal(0.02)
        self.fc1 = linear_layer(width, hidden, ("embed", "mlp"), init, dtype, rngs)
        self.fc2 = linear_layer(hidden, hidden, ("mlp", "embed"), init, dtype, rngs)
        self.fc3 = linear_layer(hidden, bottleneck, ("embed", "bottleneck"), init, dtype, rngs)
        self.kernel = nnx.Param(
            initializers.normal(bottleneck**-0.5)(rngs.params(), (bottleneck, prototypes)),
            **metadata("embed", "vocab"),
        )

    def __call__(self, x: Float[Array, "*tokens width"]) -> Float[Array, "*tokens bottleneck"]:
        """Computes embeddings of unit length, compute type.

        Args:
            x: class tokens or patches (..., width).
        """
        gelu = ACTIVATIONS["gelu"]
        return _unit(self.fc3(gelu(self.fc2(gelu(self.fc1(x))))), -1).astype(self.dtype)

    def prototypes(self) -> Float[Array, "bottleneck prototypes"]:
        """Returns the prototypes, of unit length, compute type."""
        return _unit(self.kernel[...], 0).astype(self.dtype)


def _centre(prototypes: int) -> nnx.BatchStat:
    about = metadata("vocab", decay=False)
    return nnx.BatchStat(jnp.zeros((prototypes,), jnp.float32), **about, trainable=False)


def _unit(x: Array, axis: int) -> Array:
    """Scales vectors to unit length, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), 1e-6)
