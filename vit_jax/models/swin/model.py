"""Swin Transformer (Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using
Shifted Windows"), equal to timm's for any height and width.

Attention stays within windows, so that the cost grows linearly with the image's area.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import LayersAbove, check_layers, metadata
from vit_jax.models.swin.stage import WEIGHT_INIT, Stage, StageConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Architecture of a Swin Transformer (version 1).

    Attributes:
        image_size: side of the training images, px.
        patch_size: side of a patch, px.
        width: residual stream of the first stage; doubles with each stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of a window, in positions of the feature map.
        fit_windows: whether a window shrinks to a map that is smaller, and shifts only on one that
            is larger, by the map of each image (timm's model created for that size) or always by
            the map of `image_size` (timm's `dynamic_img_size`). The same at `image_size`.
        mlp_ratio: hidden units of the MLP over the stage's width.
        activation: a key of `layers.ACTIVATIONS`.
        norm_epsilon: LayerNorm epsilon.
        drop_path: stochastic depth of the last block, linear from 0 at the first of the network.
        num_classes: outputs of the linear head; 0 for a tower without one.
    """

    image_size: int = 224
    patch_size: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    fit_windows: bool = True
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    drop_path: float = 0.0
    num_classes: int = 0

    def make(self, **execution: Any) -> "Swin":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `Swin`.
        """
        return Swin(self, **execution)

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise UserError(
                f"patch_size={self.patch_size} does not divide image_size={self.image_size}"
            )
        if not self.depths:
            raise UserError("depths=(): expected a number of blocks for each stage")
        if len(self.num_heads) != len(self.depths):
            raise UserError(
                f"num_heads={self.num_heads}: expected one number for each of the "
                f"{len(self.depths)} stages in depths={self.depths}"
            )
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path={self.drop_path}: expected a share in [0, 1)")
        self.stages  # noqa: B018 - refuses what no stage can be

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The stages; each halves the resolution (rounding up) and doubles the width."""
        return tuple(
            StageConfig(
                width=self.width << i,
                depth=depth,
                num_heads=num_heads,
                mlp_dim=int((self.width << i) * self.mlp_ratio),
                map_side=-(-self.image_size // (self.patch_size << i)),
                window_size=self.window_size,
                fit_windows=self.fit_windows,
                merge=i > 0,
                activation=self.activation,
                norm_epsilon=self.norm_epsilon,
            )
            for i, (depth, num_heads) in enumerate(zip(self.depths, self.num_heads, strict=True))
        )


class Swin(nnx.Module):
    """Images (B, H, W, 3) to features (B, D), or to logits (B, num_classes) with a head."""

    def __init__(
        self,
        config: SwinConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ):
        self.config, self.dtype = config, dtype
        patch = config.patch_size
        self.patch_embed = nnx.Conv(
            3,
            config.width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            # torch's default for convolutions, which the original leaves as it is.
            kernel_init=initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            kernel_metadata=metadata("patch_h", "patch_w", "channels", "embed"),
            bias_metadata=metadata("embed", decay=False),
            dtype=dtype,
            rngs=rngs,
        )
        norm = {"epsilon": config.norm_epsilon, "dtype": dtype, "rngs": rngs}
        self.patch_norm = layer_norm(config.width, **norm)
        for i, stage in enumerate(config.stages):
            module = Stage(stage, scan=scan, remat=remat, dtype=dtype, rngs=rngs)
            setattr(self, f"stage{i}", module)
        self.norm = layer_norm(self.embed_dim, **norm)
        if config.num_classes:
            self.head = nnx.Linear(
                self.embed_dim,
                config.num_classes,
                kernel_init=WEIGHT_INIT,
                kernel_metadata=metadata("embed", "classes"),
                bias_metadata=metadata("classes", decay=False),
                rngs=rngs,
            )

    @property
    def embed_dim(self) -> int:
        """Width D of the pooled features."""
        return self.config.stages[-1].width

    def __call__(self, images: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Logits (B, num_classes), float32, or pooled features (B, D) without a head."""
        features = self.encode_image(images, rng=rng)
        if not self.config.num_classes:
            return features
        return self.head(features.astype(jnp.float32))

    def encode_image(self, images: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Pooled features: the mean over all positions of the normalised last stage.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            rng: key for stochastic depth, or None for evaluation.

        Returns:
            (B, D), compute type.
        """
        return jnp.mean(self.norm(self._forward(images, rng)[-1]), axis=(1, 2))

    def features(self, images: jax.Array, layers: Sequence[int]) -> list[jax.Array]:
        """Outputs of the named stages, channels last: [(B, h, w, C), ...].

        Stage i is h = H / (patch_size 2^i), rounded up, and C = width 2^i. A stage's output is that
        of its last block, without a norm, before the patch merging that leads to the next stage:
        what timm's `features_only` returns, whose stages begin with the merging; the original code
        counts the merging to the end of the stage before.

        Args:
            images: (B, H, W, 3), normalised.
            layers: numbers of stages; negative ones count from the last.

        Raises:
            UserError: a stage that does not exist.
        """
        check_layers(layers, len(self.config.depths), "stages")
        outputs = self._forward(images, None)
        return [outputs[layer] for layer in layers]

    def layers_above(self) -> LayersAbove:
        """Blocks of all stages between each part and the output, the head counting as one.

        Patch merging goes with the last block of the stage before it (Xie et al. 2022, "SimMIM").
        """
        above = sum(self.config.depths)
        parts: LayersAbove = {"patch_embed": above + 1, "patch_norm": above + 1}
        for i, depth in enumerate(self.config.depths):
            parts[f"stage{i}/merging"] = above + 1
            parts[f"stage{i}/blocks"] = range(above, above - depth, -1)
            above -= depth
        return parts

    def _forward(self, images: jax.Array, rng: jax.Array | None) -> list[jax.Array]:
        """Outputs of all stages."""
        depths = self.config.depths
        # Linear rule of Huang et al. 2016, over the blocks of all stages.
        rates = jnp.linspace(0.0, self.config.drop_path, sum(depths))
        if self.config.drop_path == 0:
            rng = None
        keys = None if rng is None else jax.random.split(rng, sum(depths))
        x = self._embed(images)
        outputs: list[jax.Array] = []
        first = 0
        for i, depth in enumerate(depths):
            blocks = slice(first, first + depth)
            x = getattr(self, f"stage{i}")(x, rates[blocks], None if keys is None else keys[blocks])
            outputs.append(x)
            first += depth
        return outputs

    def _embed(self, images: jax.Array) -> jax.Array:
        """Normalised patches: (B, H / patch_size, W / patch_size, width)."""
        _, height, width, _ = images.shape
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise UserError(f"patch_size={patch} does not divide pictures of {height} x {width} px")
        return self.patch_norm(self.patch_embed(images.astype(self.dtype)))
