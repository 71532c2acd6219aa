"""Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words")."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError
from vit_jax.models.layers import (
    Transformer,
    layer_norm,
    metadata,
    resize_positions,
    sincos_positions,
)

POOLS = ("class", "mean")
POSITION_INITS = ("normal", "sincos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture of an image tower.

    Attributes:
        image_size: side of the training pictures, px; other sizes resize the positions.
        patch_size: side of a patch, px.
        width: residual stream, D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden units of the MLP.
        activation: a key of `layers.ACTIVATIONS`.
        norm_epsilon: LayerNorm epsilon; 1e-6 for ViT, 1e-5 for CLIP.
        pool: "class" (class token, normalised) or "mean" (mean of the normalised patches).
        position_init: learned positions start from "normal" noise or from "sincos".
        pre_norm: LayerNorm after the positions, before the first block (CLIP).
        patch_bias: bias of the patch convolution; CLIP has none.
        drop_path: stochastic depth of the last block, linear from 0 at the first.
        patch_dropout: share of patches left out in training (FLIP, Li et al. 2023).
        num_classes: outputs of the linear head; 0 for a tower without one.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    pool: str = "class"
    position_init: str = "normal"
    pre_norm: bool = False
    patch_bias: bool = True
    drop_path: float = 0.0
    patch_dropout: float = 0.0
    num_classes: int = 0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise UserError(
                f"patch_size={self.patch_size} does not divide image_size={self.image_size}"
            )
        if self.width % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide width={self.width}")
        if self.pool not in POOLS:
            raise UserError(f"pool={self.pool!r}: expected one of {', '.join(POOLS)}")
        if self.position_init not in POSITION_INITS:
            raise UserError(
                f"position_init={self.position_init!r}: expected one of {', '.join(POSITION_INITS)}"
            )
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"patch_dropout={self.patch_dropout}: expected a share in [0, 1)")


class ViT(nnx.Module):
    """Images (B, H, W, 3) to features (B, D), or to logits (B, num_classes) with a head."""

    def __init__(
        self,
        config: ViTConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ):
        self.config, self.dtype = config, dtype
        width, patch = config.width, config.patch_size
        self.grid = (config.image_size // patch, config.image_size // patch)
        self.patch_embed = nnx.Conv(
            3,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            use_bias=config.patch_bias,
            kernel_metadata=metadata("patch_h", "patch_w", "channels", "embed"),
            bias_metadata=metadata("embed", decay=False),
            dtype=dtype,
            rngs=rngs,
        )
        std = width**-0.5
        self.num_prefix = int(config.pool == "class")
        if self.num_prefix:
            self.class_token = nnx.Param(
                initializers.normal(std)(rngs.params(), (1, width)),
                **metadata("prefix", "embed", decay=False),
            )
        num_tokens = self.num_prefix + self.grid[0] * self.grid[1]
        positions = initializers.normal(std)(rngs.params(), (num_tokens, width))
        if config.position_init == "sincos":
            positions = positions.at[self.num_prefix :].set(sincos_positions(self.grid, width))
        self.positions = nnx.Param(positions, **metadata("length", "embed", decay=False))
        norm = {"epsilon": config.norm_epsilon, "dtype": dtype, "rngs": rngs}
        if config.pre_norm:
            self.pre_norm = layer_norm(width, **norm)
        self.transformer = Transformer(
            width,
            config.depth,
            config.num_heads,
            config.mlp_dim,
            causal=False,
            activation=config.activation,
            norm_epsilon=config.norm_epsilon,
            max_drop_path=config.drop_path,
            scan=scan,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(width, **norm)
        if config.num_classes:
            self.head = nnx.Linear(
                width,
                config.num_classes,
                kernel_init=initializers.zeros,
                kernel_metadata=metadata("embed", "classes"),
                bias_metadata=metadata("classes", decay=False),
                rngs=rngs,
            )

    @property
    def embed_dim(self) -> int:
        """Width D of the pooled features."""
        return self.config.width

    def __call__(self, images: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Logits (B, num_classes), float32, or pooled features (B, D) without a head."""
        features = self.encode_image(images, rng=rng)
        if not self.config.num_classes:
            return features
        return self.head(features.astype(jnp.float32))

    def encode_image(self, images: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Pooled features.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            rng: key for patch dropout and stochastic depth, or None for evaluation.

        Returns:
            (B, D), compute type.
        """
        tokens, _ = self._forward(images, rng, intermediates=False)
        return self._pool(tokens)

    def features(self, images: jax.Array, layers: Sequence[int]) -> list[jax.Array]:
        """Outputs of the named blocks: [(B, num_prefix + H W / patch^2, D), ...].

        Negative numbers count from the last block. The final norm is not applied.
        """
        depth = self.config.depth
        for layer in layers:
            if not -depth <= layer < depth:
                raise UserError(f"layer {layer} does not exist: this tower has {depth} blocks")
        _, blocks = self._forward(images, None, intermediates=True)
        assert blocks is not None
        return [blocks[layer] for layer in layers]

    def _forward(
        self, images: jax.Array, rng: jax.Array | None, intermediates: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        patch_rng, path_rng = (None, None) if rng is None else jax.random.split(rng)
        x = self._embed(images)
        x = self._drop_patches(x, patch_rng)
        if self.config.pre_norm:
            x = self.pre_norm(x)
        return self.transformer(x, path_rng, intermediates=intermediates)

    def _embed(self, images: jax.Array) -> jax.Array:
        """Patches with class token and positions: (B, num_prefix + h w, D)."""
        batch, height, width, _ = images.shape
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise UserError(f"patch_size={patch} does not divide pictures of {height} x {width} px")
        x = self.patch_embed(images.astype(self.dtype))
        grid = (height // patch, width // patch)
        x = x.reshape(batch, grid[0] * grid[1], -1)
        if self.num_prefix:
            token = self.class_token[...].astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (batch, *token.shape)), x], axis=1)
        positions = resize_positions(self.positions[...], self.grid, grid, self.num_prefix)
        return x + positions.astype(self.dtype)

    def _drop_patches(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
        """Keeps a random share of the patches of each example, and the prefix tokens."""
        if rng is None or not self.config.patch_dropout:
            return x
        prefix, patches = x[:, : self.num_prefix], x[:, self.num_prefix :]
        keep = max(1, round(patches.shape[1] * (1 - self.config.patch_dropout)))
        noise = jax.random.uniform(rng, patches.shape[:2])
        chosen = jnp.argsort(noise, axis=1)[:, :keep]
        patches = jnp.take_along_axis(patches, chosen[..., None], axis=1)
        return jnp.concatenate([prefix, patches], axis=1)

    def _pool(self, tokens: jax.Array) -> jax.Array:
        if self.config.pool == "class":
            return self.norm(tokens[:, 0])
        return jnp.mean(self.norm(tokens), axis=1)
