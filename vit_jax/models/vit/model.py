"""Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words")."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Int, Key

from vit_jax.errors import UserError, check_name
from vit_jax.models.layers.batch_norm import BatchNorm
from vit_jax.models.layers.grids import DEFAULT_RULE, RESIZE_RULES
from vit_jax.models.layers.heads import classifier_head
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import LayersAbove, check_layers
from vit_jax.models.layers.patch_dropout import drop_patches, select_patches
from vit_jax.models.layers.patch_embedding import PatchEmbedding
from vit_jax.models.layers.pooling import MAPHead
from vit_jax.models.layers.positions import resize_positions, sincos_positions
from vit_jax.models.layers.transformer import BlockConfig, Transformer
from vit_jax.models.sizes import Size, as_size, grid_of
from vit_jax.models.vit.tokens import PatchTokens

POOLS = ("class", "mean", "mean_norm", "map", "none")
POSITION_INITS = ("normal", "sincos", "fixed_sincos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture of a Vision Transformer.

    The tokens of an image are, in this order: class token, distillation token, registers, patches.

    Attributes:
        image_size: (height, width) of the training images, px; an int for squares. Images of other
            sizes get resized positions.
        patch_size: side of a patch, px.
        width: number of features D of the residual stream.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden units of the MLP.
        activation: key of `layers.mlp.ACTIVATIONS`.
        norm_epsilon: epsilon of LayerNorm; 1e-6 for ViT, 1e-5 for CLIP.
        class_token: whether there is a class token.
        distillation: whether there is a distillation token with its own head (Touvron et al. 2021).
        num_registers: number of learned tokens without a position (Darcet et al. 2024).
        pool: "class" (normalised class token), "mean" (mean of the normalised patches), "mean_norm"
            (norm of the mean of the patches, as in MAE's fine-tuning), "map" (attention pooling of
            the normalised tokens, as in SigLIP), or "none" for `features` alone, without a norm.
        position_init: "normal" or "sincos" for learned positions, "fixed_sincos" for fixed ones.
        position_resize: rule by which positions are resized for another grid, a name in
            `layers.grids.RESIZE_RULES`. Weights bring the rule of their format.
        position_grid: (rows, columns) of the table of positions where it is not that of the images:
            of learned ones (Qwen-VL), or of fixed ones that are resized for other grids, as MAE's
            authors and transformers do; fixed ones are otherwise computed for each grid.
        prefix_positions: whether class and distillation tokens have positions; not in DeiT III.
        pre_norm: whether a LayerNorm precedes the first block (CLIP).
        patch_bias: whether the patch embedding has a bias; not in CLIP.
        drop_remainder: whether pixels at the lower and right edge that fill no patch are left out
            (SigLIP So400m/14 at 384 px); otherwise `patch_size` divides every size of images.
        layer_scale: initial factor of the residual branches' features (DeiT III); 0 for none.
        qk_norm: whether queries and keys are normalised.
        weight_init: key of `layers.block_init.BLOCK_INITS`.
        drop_path: stochastic depth of the last block, linear from 0 at the first.
        patch_dropout: fraction of patches dropped in training (FLIP, Li et al. 2023).
        num_classes: outputs of the linear head; 0 for no head.
        head_norm: whether a batch norm without affine precedes the head (MAE's linear probe).
    """

    image_size: int | tuple[int, int] = 224
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
    position_resize: str = DEFAULT_RULE
    position_grid: tuple[int, int] | None = None
    prefix_positions: bool = True
    pre_norm: bool = False
    patch_bias: bool = True
    drop_remainder: bool = False
    layer_scale: float = 0.0
    qk_norm: bool = False
    weight_init: str = "normal"
    drop_path: float = 0.0
    patch_dropout: float = 0.0
    num_classes: int = 0
    head_norm: bool = False

    def make(self, **execution: Any) -> "ViT":
        """Builds the module with fresh parameters; the arguments are those of `ViT`."""
        return ViT(self, **execution)

    def __post_init__(self) -> None:
        """Normalises the image size and checks the fields."""
        object.__setattr__(self, "image_size", as_size(self.image_size))
        check_name(self.pool, POOLS, "pool")
        check_name(self.position_init, POSITION_INITS, "position_init")
        check_name(self.position_resize, RESIZE_RULES, "position_resize")
        if not self.class_token and (self.pool == "class" or self.distillation):
            found = "pool='class'" if self.pool == "class" else "distillation"
            raise UserError(f"{found} needs class_token=True")
        if self.head_norm and self.distillation:
            raise UserError("head_norm applies to a single head: set distillation=False")
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"patch_dropout={self.patch_dropout}: expected a fraction in [0, 1)")
        _ = self.grid, self.block  # both check their own fields

    @property
    def grid(self) -> Size:
        """Rows and columns of patches of a training image."""
        size, drop = as_size(self.image_size), self.drop_remainder
        return grid_of(size, self.patch_size, f"image_size={size}", drop_remainder=drop)

    @property
    def table_grid(self) -> Size:
        """Rows and columns of the table of positions."""
        return self.position_grid or self.grid

    @property
    def num_special(self) -> int:
        """Number of class and distillation tokens."""
        return int(self.class_token) + int(self.distillation)

    @property
    def num_prefix(self) -> int:
        """Number of tokens before the first patch."""
        return self.num_special + self.num_registers

    @property
    def block(self) -> BlockConfig:
        """Configuration of the blocks."""
        shared = {field.name for field in dataclasses.fields(BlockConfig)} - {"causal"}
        return BlockConfig(**{name: getattr(self, name) for name in shared})

    @property
    def num_position_rows(self) -> int:
        """Leading rows of the position table, which belong to class and distillation token."""
        return self.num_special if self.prefix_positions else 0

    def adapt(self, path: str, value: jax.Array | None, source: Any) -> jax.Array | None:
        """Makes the parameter `path` from that of another configuration, for fine-tuning.

        `value` is the source's parameter, None if it has none. Positions are resized to the grid of
        this model; fixed ones initialise learned ones. None if the value applies unchanged.
        """
        if path != "positions" or not isinstance(source, ViTConfig):
            return None
        rows = source.num_position_rows
        if source.width != self.width or rows != self.num_position_rows:
            return None
        if value is None and source.position_init == "fixed_sincos":
            table = source.fixed_positions(source.table_grid, source.width)
            value = jnp.pad(table, ((rows, 0), (0, 0)))  # zeros for class and distillation token
        if value is None:
            return None
        grids = source.table_grid, self.table_grid
        return resize_positions(value, *grids, rows, source.position_resize)

    def fixed_positions(self, grid: Size, width: int) -> jax.Array:
        """Returns fixed sine-cosine positions of patches.

        Args:
            grid: rows and columns of patches.
            width: width of the tokens, which differs between encoder and decoder.

        Returns:
            float32 (rows * columns, width).
        """
        own = self.position_grid or grid
        table = sincos_positions(own, width)
        return resize_positions(table, own, grid, 0, self.position_resize)


class ViT(PatchTokens):
    """Images (B, H, W, 3) to features (B, D), or to logits (B, num_classes) with a head."""

    def __init__(
        self,
        config: ViTConfig,
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
        self.config, self.dtype, width = config, dtype, config.width
        self.patch_embed = PatchEmbedding(
            config.patch_size,
            width,
            use_bias=config.patch_bias,
            drop_remainder=config.drop_remainder,
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
        if config.pool != "none":
            self.norm = layer_norm(width, **norm)
        if config.pool == "map":
            self.map_head = MAPHead(config.block, dtype=dtype, rngs=rngs)
        if config.num_classes:
            self._make_heads(rngs)

    def _make_heads(self, rngs: nnx.Rngs) -> None:
        """Creates the heads: from zeros (ViT, MAE), or from 0.02 as the blocks (DeiT)."""
        config = self.config
        small = config.weight_init == "normal"
        init = initializers.normal(0.02) if small else initializers.zeros

        def head() -> nnx.Linear:
            return classifier_head(config.width, config.num_classes, kernel_init=init, rngs=rngs)

        self.head = head()
        if config.head_norm:
            self.head_norm = BatchNorm(config.width, affine=False, epsilon=1e-6, dtype=jnp.float32)
        if config.distillation:
            self.distillation_head = head()

    @property
    def embed_dim(self) -> int:
        """Number of pooled features D."""
        return self.config.width

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch outputs"]:
        """Computes logits, or pooled features without a head.

        With a distillation token the logits are the mean of those of both heads (DeiT, section 4).

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            Logits (B, num_classes), float32, or features (B, D), compute type.
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
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]:
        """Computes the logits of the class token and of the distillation token (DeiT, section 4).

        Args:
            images: (B, H, W, 3), normalised.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            Two arrays (B, num_classes), float32.

        Raises:
            UserError: a model without a distillation head.
        """
        if not (self.config.distillation and self.config.num_classes):
            raise UserError("this model has no distillation head: set distillation and num_classes")
        tokens, _ = self._forward(images, rng, intermediates=False)
        pooled = self._pool(tokens).astype(jnp.float32)
        distilled = self.norm(tokens[:, 1]).astype(jnp.float32)
        return self.head(pooled), self.distillation_head(distilled)

    def encode_image(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch dim"]:
        """Computes pooled features.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            rng: PRNG key for patch dropout and stochastic depth, or None for evaluation.

        Returns:
            (B, D), compute type.
        """
        tokens, _ = self._forward(images, rng, intermediates=False)
        return self._pool(tokens)

    def features(
        self, images: Float[Array, "batch height width 3"], layers: Sequence[int]
    ) -> list[Float[Array, "batch tokens dim"]]:
        """Computes the outputs of blocks, without the final norm.

        Args:
            images: (B, H, W, 3), normalised.
            layers: indices of blocks; negative ones count from the last.

        Returns:
            One array (B, num_prefix + h w, D) per index.

        Raises:
            UserError: a block that does not exist.
        """
        check_layers(layers, self.config.depth)
        _, blocks = self._forward(images, None, intermediates=True)
        assert blocks is not None
        return [blocks[layer] for layer in layers]

    def encode_patches(
        self,
        images: Float[Array, "batch height width 3"],
        selected: Int[Array, "batch kept"],
    ) -> Float[Array, "batch tokens dim"]:
        """Computes normalised tokens from a subset of the patches (MAE, section 3).

        Args:
            images: (B, H, W, 3), normalised.
            selected: indices (B, K) of the patches that enter the first block.

        Returns:
            (B, num_prefix + K, D), compute type.
        """
        x = select_patches(self._embed(images), selected, self.config.num_prefix)
        if self.config.pre_norm:
            x = self.pre_norm(x)
        x, _ = self.transformer(x)
        return self.norm(x)

    def encode_patches_and_pool(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch patches dim"]]:
        """Computes pooled features, see `encode_image`, and the normalised patches beside them.

        Args:
            images: (B, H, W, 3), normalised.
            rng: PRNG key for patch dropout and stochastic depth, or None for evaluation.

        Returns:
            (B, D) and (B, h w, D), compute type.
        """
        tokens, _ = self._forward(images, rng, intermediates=False)
        return self._pool(tokens), self.norm(tokens[:, self.config.num_prefix :])

    def layers_above(self) -> LayersAbove:
        """Counts the blocks between each part and the output; the head counts as one (BEiT)."""
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
        x = drop_patches(x, self.config.patch_dropout, patch_rng, self.config.num_prefix)
        if self.config.pre_norm:
            x = self.pre_norm(x)
        return self.transformer(x, path_rng, intermediates=intermediates)

    def _pool(self, tokens: jax.Array) -> jax.Array:
        pool, split = self.config.pool, self.config.num_prefix
        if pool == "none":
            raise UserError("this tower has no pooled features (pool='none'); call `features`")
        if pool == "class":
            return self.norm(tokens[:, 0])
        if pool == "mean":
            return jnp.mean(self.norm(tokens[:, split:]), axis=1)
        if pool == "mean_norm":
            return self.norm(jnp.mean(tokens[:, split:], axis=1))
        return self.map_head(self.norm(tokens))
