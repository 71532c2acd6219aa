"""A ViT with projection heads (Caron et al. 2021, DINO; Zhou et al. 2022, iBOT; DINOv2)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.layers.parameters import LayersAbove
from vit_jax.models.vit.backbone import ViTBackbone
from vit_jax.models.vit.model import ViT, ViTConfig
from vit_jax.models.vit.projection_heads import HeadsConfig, ProjectionHeads, check_no_dropout


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOConfig(HeadsConfig):
    """Architecture of a backbone with projection heads.

    Attributes:
        image: architecture of the backbone, a ViT without a classification head.
    """

    image: ViTConfig

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
        check_no_dropout(self.image)


class DINO(ProjectionHeads, ViTBackbone):
    """The network of both student and teacher."""

    config: DINOConfig

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
        self.config = config
        self.image = ViT(config.image, dtype=dtype, scan=scan, remat=remat, rngs=rngs)
        self._make_heads(dtype, rngs)

    def layers_above(self) -> LayersAbove:
        """Counts the layers above each part of the backbone; the projection counts as its head."""
        return {**super().layers_above(), "mask_token": self.config.image.depth + 1}
