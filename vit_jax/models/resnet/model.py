"""ResNet v1.5: He et al. 2016, "Deep Residual Learning", with strides in the 3x3 convolutions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Key

from vit_jax.models.layers.batch_norm import BatchNorm
from vit_jax.models.layers.convolution import convolution
from vit_jax.models.layers.heads import classifier_head
from vit_jax.models.resnet.blocks import (
    EXPANSION,
    NUM_STAGES,
    BottleneckStyle,
    StagedResNet,
    check_depths,
)
from vit_jax.models.sizes import as_size

# He et al. 2015, "Delving Deep into Rectifiers", scaled by the outputs as in torchvision and timm.
RESNET_STYLE = BottleneckStyle(
    antialias=False, kernel_init=initializers.variance_scaling(2.0, "fan_out", "normal")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Architecture of a ResNet v1.5 with bottlenecks.

    Attributes:
        image_size: (height, width) of the training images, px; an int for squares. The network
            takes any size.
        depths: number of bottlenecks of each of the four stages.
        width: channels of the stem and inner channels of the first stage; doubles with each stage.
        num_classes: outputs of the linear head; 0 for no head.
    """

    image_size: int | tuple[int, int] = 224
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_classes: int = 0

    def make(self, **execution: Any) -> "ResNet":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `ResNet`.
        """
        return ResNet(self, **execution)

    def __post_init__(self) -> None:
        """Normalises the image size and checks the depths."""
        object.__setattr__(self, "image_size", as_size(self.image_size))
        check_depths(self.depths)


class ResNet(StagedResNet):
    """Images (B, H, W, 3) to features (B, 32 width), or to logits (B, num_classes) with a head."""

    def __init__(
        self,
        config: ResNetConfig,
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
            scan: whether to scan the equal bottlenecks of a stage or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`, except "mlp".
        """
        super().__init__(
            config.width,
            config.depths,
            RESNET_STYLE,
            scan=scan,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.config, self.dtype = config, dtype
        self.stem_conv = convolution(
            3, config.width, 7, 2, kernel_init=RESNET_STYLE.kernel_init, dtype=dtype, rngs=rngs
        )
        self.stem_norm = BatchNorm(config.width, dtype=dtype)
        if config.num_classes:
            self.head = classifier_head(
                self.embed_dim,
                config.num_classes,
                kernel_init=initializers.normal(0.01),
                rngs=rngs,
            )

    @property
    def embed_dim(self) -> int:
        """Number of pooled features D."""
        return EXPANSION * self.config.width << (NUM_STAGES - 1)

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch outputs"]:
        """Computes logits, or pooled features without a head.

        Args:
            images: (B, H, W, 3), normalised; any H and W.
            rng: PRNG key for training, or None for evaluation, see `encode_image`.

        Returns:
            Logits (B, num_classes), float32, or features (B, D), compute type.
        """
        features = self.encode_image(images, rng=rng)
        if not self.config.num_classes:
            return features
        return self.head(features.astype(jnp.float32))

    def encode_image(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch dim"]:
        """Computes pooled features: the mean over all positions of the last stage.

        Args:
            images: (B, H, W, 3), normalised; any H and W.
            rng: None for evaluation. A PRNG key for training: batch norms use the statistics of the
                batch and update their averages. Nothing is drawn from the key.

        Returns:
            (B, 32 width), compute type.
        """
        return jnp.mean(self._forward(images, train=rng is not None)[-1], axis=(1, 2))

    def _stem(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self.stem_conv(images.astype(self.dtype))
        x = jax.nn.relu(self.stem_norm(x, train=train))
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
