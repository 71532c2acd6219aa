"""MLP-Mixer (Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP Architecture for Vision")."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.layers.mlp import Mlp
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import LayersAbove, check_layers, metadata
from vit_jax.models.layers.stacking import REMAT_POLICIES, stack_blocks

Images = Float[Array, "batch height width 3"]
Tokens = Float[Array, "batch tokens width"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """Architecture of an MLP-Mixer.

    Attributes:
        image_size: height and width of the images, px.
        patch_size: height and width of a patch, px.
        width: channels of a token.
        depth: number of blocks.
        tokens_mlp_dim: hidden units of the MLP over tokens.
        channels_mlp_dim: hidden units of the MLP over channels.
        num_classes: outputs of the classification head; 0 for an encoder without a head.
        weight_formats: formats of foreign weight files.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    tokens_mlp_dim: int = 384
    channels_mlp_dim: int = 3072
    num_classes: int = 0
    weight_formats: ClassVar[str] = "my_project.mixer.weights:FORMATS"

    def __post_init__(self) -> None:
        if any(side % self.patch_size for side in self.image_size):
            raise UserError(
                f"patch_size={self.patch_size} does not divide image_size={self.image_size}"
            )

    def make(self, **execution: Any) -> "Mixer":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `Mixer`.
        """
        return Mixer(self, **execution)

    @property
    def num_tokens(self) -> int:
        """Number of patches of an image."""
        height, width = self.image_size
        return (height // self.patch_size) * (width // self.patch_size)


class MixerBlock(nnx.Module):
    """An MLP over tokens and an MLP over channels, both with a residual connection."""

    def __init__(self, config: MixerConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds the block; the arguments are those of `Mixer`."""
        init = initializers.xavier_uniform()
        mlp = {"activation": "gelu", "in_init": init, "out_init": init}
        self.norm1 = layer_norm(config.width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.tokens = Mlp(config.num_tokens, config.tokens_mlp_dim, **mlp, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(config.width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.channels = Mlp(config.width, config.channels_mlp_dim, **mlp, dtype=dtype, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        """Tokens after the block."""
        x = x + self.tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nnx.Module):
    """MLP-Mixer: images to logits, or to features for a model without a head."""

    def __init__(
        self,
        config: MixerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ) -> None:
        """Builds the model.

        Args:
            config: architecture.
            rngs: source of keys for parameters.
            dtype: compute type; parameters are float32.
            scan: whether the blocks are scanned (one trace) or unrolled.
            remat: rematerialisation policy of the blocks, a key of `REMAT_POLICIES`.
        """
        self.config, self.dtype, self.scan, self.remat = config, dtype, scan, remat
        self.patch_embed = nnx.Conv(
            3,
            config.width,
            (config.patch_size, config.patch_size),
            strides=config.patch_size,
            padding="VALID",
            kernel_metadata=metadata("patch_h", "patch_w", "channels", "embed"),
            bias_metadata=metadata("embed", decay=False),
            dtype=dtype,
            rngs=rngs,
        )
        self.blocks = stack_blocks(
            lambda rngs: MixerBlock(config, dtype=dtype, rngs=rngs),
            jax.random.split(rngs.params(), config.depth),
        )
        self.norm = layer_norm(config.width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        if config.num_classes:
            self.head = nnx.Linear(
                config.width,
                config.num_classes,
                kernel_init=initializers.zeros,
                kernel_metadata=metadata("embed", "classes"),
                bias_metadata=metadata("classes", decay=False),
                rngs=rngs,
            )

    @property
    def embed_dim(self) -> int:
        """Width of the features."""
        return self.config.width

    def __call__(
        self, images: Images, *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch outputs"]:
        """Logits, float32, or the features of a model without a head."""
        features = self.encode_image(images, rng=rng)
        return self.head(features.astype(jnp.float32)) if self.config.num_classes else features

    def encode_image(
        self, images: Images, *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch width"]:
        """Mean of the normalised tokens.

        Args:
            images: normalised images of the size of the architecture.
            rng: key for training; a Mixer has no dropout and ignores it.
        """
        del rng
        tokens, _ = self._forward(images)
        return jnp.mean(self.norm(tokens), axis=1)

    def features(self, images: Images, layers: Sequence[int]) -> list[Tokens]:
        """Outputs of blocks; negative numbers count from the last block."""
        check_layers(layers, self.config.depth)
        _, blocks = self._forward(images)
        return [blocks[layer] for layer in layers]

    def layers_above(self) -> LayersAbove:
        """Blocks between each part and the output, for layer-wise learning rates."""
        depth = self.config.depth
        return {"patch_embed": depth + 1, "blocks": range(depth, 0, -1)}

    def _forward(self, images: Images) -> tuple[Tokens, Float[Array, "depth batch tokens width"]]:
        """Output of the last block, and of every block."""
        if images.shape[1:3] != self.config.image_size:
            raise UserError(
                f"images of {images.shape[1:3]} px: a Mixer runs at its own image_size, "
                f"{self.config.image_size}"
            )
        x = self.patch_embed(images.astype(self.dtype))
        x = x.reshape(len(images), self.config.num_tokens, -1)
        graphdef, variables = nnx.split(self.blocks)

        def apply_block(x: jax.Array, variables: nnx.State) -> tuple[jax.Array, jax.Array]:
            x = nnx.merge(graphdef, variables)(x)
            return x, x

        if (policy := REMAT_POLICIES[self.remat]) is not None:
            apply_block = jax.checkpoint(apply_block, policy=policy, prevent_cse=not self.scan)
        return jax.lax.scan(apply_block, x, variables, unroll=1 if self.scan else True)
