"""Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words")."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from vit_jax.errors import UserError, check_name
from vit_jax.models.layers.batch_norm import BatchNorm
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import LayersAbove, check_layers, metadata
from vit_jax.models.layers.pooling import MAPHead
from vit_jax.models.layers.positions import resize_positions, sincos_positions
from vit_jax.models.layers.transformer import BlockConfig, Transformer

POOLS = ("class", "mean", "mean_norm", "map")
POSITION_INITS = ("normal", "sincos", "fixed_sincos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture of an image tower.

    Tokens of an image are, in this order: class token, distillation token, registers, patches.

    Attributes:
        image_size: side of the training images, px; other sizes resize the positions.
        patch_size: side of a patch, px.
        width: residual stream, D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden units of the MLP.
        activation: a key of `layers.ACTIVATIONS`.
        norm_epsilon: LayerNorm epsilon; 1e-6 for ViT, 1e-5 for CLIP.
        class_token: whether there is one.
        distillation: distillation token with a head of its own (DeiT, Touvron et al. 2021).
        num_registers: learned tokens without a position (Darcet et al. 2024).
        pool: "class" (class token, normalised), "mean" (mean of the normalised patches),
            "mean_norm" (norm of the mean of the patches, MAE's fine-tuning) or "map" (attention
            pooling of the normalised tokens, SigLIP).
        position_init: learned positions start from "normal" noise or from "sincos"; "fixed_sincos"
            are no parameters.
        prefix_positions: whether class and distillation token have positions (not in DeiT III).
        pre_norm: LayerNorm after the positions, before the first block (CLIP).
        patch_bias: bias of the patch convolution; CLIP has none.
        layer_scale: initial factor of the residual branches' features (DeiT III); 0 for none.
        qk_norm: whether queries and keys are normalised.
        weight_init: a key of `transformer.BLOCK_INITS`.
        drop_path: stochastic depth of the last block, linear from 0 at the first.
        patch_dropout: fraction of patches left out in training (FLIP, Li et al. 2023).
        num_classes: outputs of the linear head; 0 for a tower without one.
        head_norm: batch norm without factors before the head (MAE's linear probe).
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    class_token: bool = True
    distillation: bool = False
    num_registers: int = 0
    pool: str = "class"
    position_init: str = "normal"
    prefix_positions: bool = True
    pre_norm: bool = False
    patch_bias: bool = True
    layer_scale: float = 0.0
    qk_norm: bool = False
    weight_init: str = "normal"
    drop_path: float = 0.0
    patch_dropout: float = 0.0
    num_classes: int = 0
    head_norm: bool = False

    def make(self, **execution: Any) -> "ViT":
        """Builds the module with fresh parameters.

        Args:
            **execution: rngs, dtype, scan and remat, see `ViT`.
        """
        return ViT(self, **execution)

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise UserError(
                f"patch_size={self.patch_size} does not divide image_size={self.image_size}"
            )
        check_name(self.pool, POOLS, "pool")
        check_name(self.position_init, POSITION_INITS, "position_init")
        if not self.class_token and (self.pool == "class" or self.distillation):
            found = "pool='class'" if self.pool == "class" else "distillation"
            raise UserError(f"{found} needs class_token=True")
        if self.head_norm and self.distillation:
            raise UserError("head_norm goes with one head: set distillation=False")
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"patch_dropout={self.patch_dropout}: expected a share in [0, 1)")
        self.block  # noqa: B018 - refuses what no block can be

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a training image."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def num_special(self) -> int:
        """Class and distillation tokens."""
        return int(self.class_token) + int(self.distillation)

    @property
    def num_prefix(self) -> int:
        """Tokens before the first patch."""
        return self.num_special + self.num_registers

    @property
    def block(self) -> BlockConfig:
        """The blocks of the stack."""
        shared = {field.name for field in dataclasses.fields(BlockConfig)} - {"causal"}
        return BlockConfig(**{name: getattr(self, name) for name in shared})


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
        self._make_tokens(rngs)
        norm = {"epsilon": config.norm_epsilon, "dtype": dtype, "rngs": rngs}
        if config.pre_norm:
            self.pre_norm = layer_norm(width, **norm)
        self.transformer = Transformer(
            config.block,
            config.depth,
            max_drop_path=config.drop_path,
            scan=scan,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(width, **norm)
        if config.pool == "map":
            self.map_head = MAPHead(config.block, dtype=dtype, rngs=rngs)
        if config.num_classes:
            self.head = classifier_head(config, rngs)
        if config.num_classes and config.head_norm:
            self.head_norm = BatchNorm(width, affine=False, epsilon=1e-6, dtype=jnp.float32)
        if config.num_classes and config.distillation:
            self.distillation_head = classifier_head(config, rngs)

    def _make_tokens(self, rngs: nnx.Rngs) -> None:
        """Learned tokens and positions."""
        config, width = self.config, self.config.width
        init = initializers.normal(width**-0.5)

        def tokens(count: int) -> nnx.Param:
            value = init(rngs.params(), (count, width))
            return nnx.Param(value, **metadata("prefix", "embed", decay=False))

        if config.class_token:
            self.class_token = tokens(1)
        if config.distillation:
            self.distillation_token = tokens(1)
        if config.num_registers:
            self.registers = tokens(config.num_registers)
        if config.position_init == "fixed_sincos":
            return
        rows, columns = config.grid
        prefix = config.num_special if config.prefix_positions else 0
        positions = init(rngs.params(), (prefix + rows * columns, width))
        if config.position_init == "sincos":
            positions = positions.at[prefix:].set(sincos_positions(config.grid, width))
        self.positions = nnx.Param(positions, **metadata("length", "embed", decay=False))

    @property
    def embed_dim(self) -> int:
        """Width D of the pooled features."""
        return self.config.width

    def __call__(self, images: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Logits (B, num_classes), float32, or pooled features (B, D) without a head.

        With a distillation token the logits are the mean of both heads' (DeiT, section 4).
        """
        if not self.config.num_classes:
            return self.encode_image(images, rng=rng)
        if self.config.distillation:
            by_class, by_distillation = self.both_logits(images, rng=rng)
            return (by_class + by_distillation) / 2
        pooled = self.encode_image(images, rng=rng).astype(jnp.float32)
        if self.config.head_norm:
            pooled = self.head_norm(pooled, train=rng is not None)
        return self.head(pooled)

    def both_logits(
        self, images: jax.Array, *, rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Logits (B, num_classes), float32, of the class token and of the distillation token."""
        if not (self.config.distillation and self.config.num_classes):
            raise UserError("this model has no distillation head: set distillation and num_classes")
        tokens, _ = self._forward(images, rng, intermediates=False)
        pooled = self._pool(tokens).astype(jnp.float32)
        distilled = self.norm(tokens[:, 1]).astype(jnp.float32)
        return self.head(pooled), self.distillation_head(distilled)

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
        """Outputs of the named blocks: [(B, num_prefix + h w, D), ...].

        Negative numbers count from the last block. The final norm is not applied.
        """
        check_layers(layers, self.config.depth)
        _, blocks = self._forward(images, None, intermediates=True)
        assert blocks is not None
        return [blocks[layer] for layer in layers]

    def encode_patches(self, images: jax.Array, chosen: jax.Array) -> jax.Array:
        """Normalised tokens of images of which only some patches are seen (MAE).

        Args:
            images: (B, H, W, 3), normalised.
            chosen: (B, K), numbers of patches; the others are left out before the first block.

        Returns:
            (B, num_prefix + K, D), compute type.
        """
        x = self._choose_patches(self._embed(images), chosen)
        if self.config.pre_norm:
            x = self.pre_norm(x)
        x, _ = self.transformer(x)
        return self.norm(x)

    def grid_of(self, images: jax.Array) -> tuple[int, int]:
        """Rows and columns of patches of images (B, H, W, 3)."""
        _, height, width, _ = images.shape
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise UserError(f"patch_size={patch} does not divide pictures of {height} x {width} px")
        return height // patch, width // patch

    def layers_above(self) -> LayersAbove:
        """Blocks between each part and the output, the head counting as one (MAE, BEiT)."""
        depth = self.config.depth
        first = ("patch_embed", "class_token", "distillation_token", "registers", "positions")
        return {
            **dict.fromkeys((*first, "pre_norm"), depth + 1),
            "transformer/blocks": range(depth, 0, -1),
        }

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
        """All tokens with their positions: (B, num_prefix + h w, D)."""
        config = self.config
        batch, grid = len(images), self.grid_of(images)
        x = self.patch_embed(images.astype(self.dtype))
        patches = x.reshape(batch, grid[0] * grid[1], -1)

        def prefix(tokens: list[nnx.Param]) -> list[jax.Array]:
            values = [token[...].astype(self.dtype) for token in tokens]
            return [jnp.broadcast_to(v, (batch, *v.shape)) for v in values]

        special = [self.class_token] if config.class_token else []
        special += [self.distillation_token] if config.distillation else []
        registers = prefix([self.registers] if config.num_registers else [])
        if not config.prefix_positions or config.position_init == "fixed_sincos":
            patches = patches + self._positions(grid, 0)
            return jnp.concatenate([*prefix(special), *registers, patches], axis=1)
        x = jnp.concatenate([*prefix(special), patches], axis=1)
        x = x + self._positions(grid, config.num_special)
        if not registers:
            return x
        split = config.num_special
        return jnp.concatenate([x[:, :split], *registers, x[:, split:]], axis=1)

    def _positions(self, grid: tuple[int, int], num_prefix: int) -> jax.Array:
        """Positions of the leading tokens and of a grid of patches, compute type."""
        if self.config.position_init == "fixed_sincos":
            return sincos_positions(grid, self.config.width).astype(self.dtype)
        table = resize_positions(self.positions[...], self.config.grid, grid, num_prefix)
        return table.astype(self.dtype)

    def _drop_patches(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
        """Keeps a random fraction of the patches of each example, and the tokens before them."""
        if rng is None or not self.config.patch_dropout:
            return x
        count = x.shape[1] - self.config.num_prefix
        keep = max(1, round(count * (1 - self.config.patch_dropout)))
        noise = jax.random.uniform(rng, (len(x), count))
        return self._choose_patches(x, jnp.argsort(noise, axis=1)[:, :keep])

    def _choose_patches(self, x: jax.Array, chosen: jax.Array) -> jax.Array:
        """Keeps the tokens before the patches and the chosen (B, K) patches."""
        split = self.config.num_prefix
        patches = jnp.take_along_axis(x[:, split:], chosen[..., None], axis=1)
        return jnp.concatenate([x[:, :split], patches], axis=1)

    def _pool(self, tokens: jax.Array) -> jax.Array:
        pool, split = self.config.pool, self.config.num_prefix
        if pool == "class":
            return self.norm(tokens[:, 0])
        if pool == "mean":
            return jnp.mean(self.norm(tokens[:, split:]), axis=1)
        if pool == "mean_norm":
            return self.norm(jnp.mean(tokens[:, split:], axis=1))
        return self.map_head(self.norm(tokens))


def classifier_head(config: ViTConfig, rngs: nnx.Rngs) -> nnx.Linear:
    """The linear head, float32; from zeros (ViT, MAE), or from 0.02 as the blocks (DeiT)."""
    small = config.weight_init == "normal"
    return nnx.Linear(
        config.width,
        config.num_classes,
        kernel_init=initializers.normal(0.02) if small else initializers.zeros,
        kernel_metadata=metadata("embed", "classes"),
        bias_metadata=metadata("classes", decay=False),
        rngs=rngs,
    )
