"""The vision side of LLaVA 1.5 (Liu et al. 2024).

"Improved Baselines with Visual Instruction Tuning", section 3: a tower of CLIP and a projector of
two linear layers turn an image into embeddings, which the language model reads as words.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.layers.mlp import Mlp
from vit_jax.models.layers.parameters import TORCH_INIT, check_layers
from vit_jax.models.vit.backbone import ViTReader
from vit_jax.models.vit.model import ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaConfig:
    """Architecture of a tower with a projector.

    Attributes:
        image: architecture of the image tower.
        width: number of features of an embedding: 4096 for the language model of 7B, 5120 for 13B.
        feature_layer: block whose output is projected; negative numbers count from the last.
        class_token: whether the class token is projected as well.
        activation: key of `layers.mlp.ACTIVATIONS`, between the linear layers.
    """

    image: ViTConfig
    width: int = 4096
    feature_layer: int = -2
    class_token: bool = False
    activation: str = "gelu"

    def make(self, **execution: Any) -> "Llava":
        """Builds the module with fresh parameters; the arguments are those of `Llava`."""
        return Llava(self, **execution)

    def __post_init__(self) -> None:
        """Checks the tower."""
        if not isinstance(self.image, ViTConfig):
            raise UserError(f"LLaVA's tower is a ViT; found {type(self.image).__name__}")
        check_layers((self.feature_layer,), self.image.depth)


class Llava(ViTReader):
    """Images (B, H, W, 3) to embeddings (B, N, width) for the language model."""

    def __init__(
        self,
        config: LlavaConfig,
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
        self.config, self.dtype = config, dtype
        self.image = config.image.make(dtype=dtype, scan=scan, remat=remat, rngs=rngs)
        self.projector = Mlp(
            config.image.width,
            config.width,
            out_width=config.width,
            activation=config.activation,
            in_init=TORCH_INIT,
            out_init=TORCH_INIT,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """Computes the embeddings of images.

        Args:
            images: (B, H, W, 3), normalised.
            rng: not used; nothing is random.

        Returns:
            (B, h w, width), compute type, row by row: 576 embeddings at 336 px.
        """
        del rng
        [states] = self.features(images, (self.config.feature_layer,))
        first = 0 if self.config.class_token else self.config.image.num_prefix
        return self.projector(states[:, first:])
