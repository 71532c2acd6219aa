"""Swin Transformer (Liu et al. 2021), equal to timm's for any height and width.

Attention stays within windows: the cost grows linearly with the area of the image.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError, check_name
from vit_jax.models.layers.drop_path import drop_path_schedule
from vit_jax.models.layers.heads import classifier_head
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import TORCH_INIT, LayersAbove, check_layers
from vit_jax.models.layers.patch_embedding import PatchEmbedding
from vit_jax.models.sizes import as_size, grid_of
from vit_jax.models.swin.stage import WEIGHT_INIT, Stage, StageConfig
from vit_jax.models.swin.windows import RESIZE_METHODS, resize_bias_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Architecture of a Swin Transformer (version 1).

    Attributes:
        image_size: (height, width) of the training images, px; an int for squares.
        patch_size: side of a patch, px.
        width: number of features of the first stage; doubles with each stage.
        depths: number of blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of a window, in positions of the feature map.
        fit_windows: whether windows are fitted to the feature map of each image, as in a timm model
            created for that size, or to the map of `image_size`, as with timm's `dynamic_img_size`.
            A window shrinks to a smaller map, and shifts only on a larger one. Both choices are
            equal at `image_size`.
        fixed_windows: whether windows have the same size and shifts on every map, as in the
            backbones of detectors. Maps are then padded before they are shifted, images are padded
            to a multiple of the patch size, and `fit_windows` does not apply.
        position_resize: rule by which tables of relative-position biases are resized for another
            window, a key of `windows.RESIZE_METHODS`. Weights bring the rule of their format.
        mlp_ratio: hidden units of the MLP divided by the width of the stage.
        activation: key of `layers.mlp.ACTIVATIONS`.
        norm_epsilon: epsilon of LayerNorm.
        drop_path: stochastic depth of the last block, linear from 0 at the first block of the
            first stage.
        final_norm: whether the last stage is normalised before pooling. Backbones of detectors,
            which do not pool, have no such norm.
        num_classes: outputs of the linear head; 0 for no head.
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    fit_windows: bool = True
    fixed_windows: bool = False
    position_resize: str = "geometric"
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    drop_path: float = 0.0
    final_norm: bool = True
    num_classes: int = 0

    def make(self, **execution: Any) -> "Swin":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `Swin`.
        """
        return Swin(self, **execution)

    def __post_init__(self) -> None:
        """Normalises the image size and checks the fields."""
        size = as_size(self.image_size)
        object.__setattr__(self, "image_size", size)
        if not self.fixed_windows:
            grid_of(size, self.patch_size, f"image_size={size}")
        check_name(self.position_resize, RESIZE_METHODS, "position_resize")
        if not self.depths:
            raise UserError("depths=(): expected a number of blocks for each stage")
        if len(self.num_heads) != len(self.depths):
            raise UserError(
                f"num_heads={self.num_heads}: expected one number for each of the "
                f"{len(self.depths)} stages in depths={self.depths}"
            )
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path={self.drop_path}: expected a fraction in [0, 1)")
        self.stages  # noqa: B018 - checks its own fields

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """Configurations of the stages. Each halves the resolution and doubles the width."""
        height, width = as_size(self.image_size)
        return tuple(
            StageConfig(
                width=self.width << i,
                depth=depth,
                num_heads=num_heads,
                mlp_dim=int((self.width << i) * self.mlp_ratio),
                map_size=(_ceil(height, self.patch_size << i), _ceil(width, self.patch_size << i)),
                window_size=self.window_size,
                fit_windows=self.fit_windows,
                fixed_windows=self.fixed_windows,
                merge=i > 0,
                activation=self.activation,
                norm_epsilon=self.norm_epsilon,
            )
            for i, (depth, num_heads) in enumerate(zip(self.depths, self.num_heads, strict=True))
        )

    def adapt(self, path: str, value: jax.Array | None, source: Any) -> jax.Array | None:
        """Makes a parameter of this model from that of another configuration, for fine-tuning.

        Bias tables are resized to the windows of this model by the rule of the source.

        Args:
            path: path of the parameter.
            value: parameter of the source; None if it has none at this path.
            source: config of the source.

        Returns:
            The parameter, or None if the source's own value applies.
        """
        stage = re.fullmatch(r"stage(\d+)/.*/bias_table", path)
        if stage is None or value is None or not isinstance(source, SwinConfig):
            return None
        old, new = (config.stages[int(stage[1])].table_window for config in (source, self))
        method = source.position_resize
        resize = functools.partial(resize_bias_table, old=old, new=new, method=method)
        for _ in value.shape[:-2]:  # stacks of blocks
            resize = jax.vmap(resize)
        return resize(value)


def _ceil(size: int, divisor: int) -> int:
    return -(-size // divisor)


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
        self.patch_embed = PatchEmbedding(
            config.patch_size,
            config.width,
            # torch's default for convolutions, which the original code keeps.
            kernel_init=TORCH_INIT,
            dtype=dtype,
            rngs=rngs,
        )
        norm = {"epsilon": config.norm_epsilon, "dtype": dtype, "rngs": rngs}
        self.patch_norm = layer_norm(config.width, **norm)
        for i, stage in enumerate(config.stages):
            module = Stage(stage, scan=scan, remat=remat, dtype=dtype, rngs=rngs)
            setattr(self, f"stage{i}", module)
        if config.final_norm:
            self.norm = layer_norm(self.embed_dim, **norm)
        if config.num_classes:
            self.head = classifier_head(
                self.embed_dim, config.num_classes, kernel_init=WEIGHT_INIT, rngs=rngs
            )

    @property
    def embed_dim(self) -> int:
        """Number of pooled features D."""
        return self.config.stages[-1].width

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch outputs"]:
        """Computes logits, or pooled features without a head.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            rng: PRNG key for training, or None for evaluation.

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
        """Computes pooled features: the mean over all positions of the last stage, normalised.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            rng: PRNG key for stochastic depth, or None for evaluation.

        Returns:
            (B, D), compute type.
        """
        x = self._forward(images, rng)[-1]
        return jnp.mean(self.norm(x) if self.config.final_norm else x, axis=(1, 2))

    def features(
        self,
        images: Float[Array, "batch height width 3"],
        layers: Sequence[int],
        *,
        rng: Key[Array, ""] | None = None,
    ) -> list[Float[Array, "batch _rows _columns _channels"]]:
        """Computes the outputs of stages, channels last.

        Stage i has h = H / (patch_size 2^i) rows, rounded up, and C = width 2^i channels. The
        output of a stage is that of its last block, without a norm, before the patch merging of the
        next stage. timm's `features_only` returns the same; the original code counts the merging as
        the end of the stage before.

        Args:
            images: (B, H, W, 3), normalised.
            layers: indices of stages; negative ones count from the last.
            rng: PRNG key for stochastic depth, or None for evaluation.

        Returns:
            One array (B, h, w, C) per index.

        Raises:
            UserError: a stage that does not exist.
        """
        check_layers(layers, len(self.config.depths), "stages")
        outputs = self._forward(images, rng)
        return [outputs[layer] for layer in layers]

    def layers_above(self) -> LayersAbove:
        """Counts the blocks between each part and the output; the head counts as one.

        Patch merging counts with the last block of the stage before it (Xie et al. 2022, "SimMIM").
        """
        above = sum(self.config.depths)
        parts: LayersAbove = {"patch_embed": above + 1, "patch_norm": above + 1}
        for i, depth in enumerate(self.config.depths):
            parts[f"stage{i}/merging"] = above + 1
            parts[f"stage{i}/blocks"] = range(above, above - depth, -1)
            above -= depth
        return parts

    def _forward(self, images: jax.Array, rng: jax.Array | None) -> list[jax.Array]:
        """Computes the outputs of all stages."""
        depths = self.config.depths
        rates, keys = drop_path_schedule(self.config.drop_path, sum(depths), rng)
        if self.config.fixed_windows:
            bottom, right = (-side % self.config.patch_size for side in images.shape[1:3])
            images = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
        x = self.patch_norm(self.patch_embed(images))
        outputs: list[jax.Array] = []
        first = 0
        for i, depth in enumerate(depths):
            blocks = slice(first, first + depth)
            x = getattr(self, f"stage{i}")(x, rates[blocks], None if keys is None else keys[blocks])
            outputs.append(x)
            first += depth
        return outputs
