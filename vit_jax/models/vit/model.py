"""Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words")."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vit_jax.errors import UserError, check_name
from vit_jax.inputs.patches import Images
from vit_jax.models.layers.grids import ANTIALIASED, DEFAULT_RULE, RESIZE_RULES
from vit_jax.models.layers.parameters import LayersAbove, check_layers
from vit_jax.models.layers.positions import resize_positions, sincos_positions
from vit_jax.models.layers.transformer import BlockConfig, Transformer
from vit_jax.models.sizes import Size, as_size, grid_of
from vit_jax.models.vit.adaptation import adapt
from vit_jax.models.vit.outputs import POOLS, PooledOutputs
from vit_jax.models.vit.tokens import POSITION_INITS, PatchTokens, Replaced


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture of a Vision Transformer.

    The tokens of an image are, in this order: class token, distillation token, registers, patches.

    Attributes:
        image_size: (height, width) of the training images, px; an int for squares. Images of other
            sizes get resized positions.
        patch_size: side of a patch, px.
        kernel_size: side of the learned kernel of the patch embedding, px, where it is not that of
            a patch: the kernel is resized to the patches (FlexiViT, Beyer et al. 2023).
        width: number of features D of the residual stream.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden units of the MLP.
        activation: key of `layers.mlp.ACTIVATIONS`.
        norm_epsilon: epsilon of the norms; 1e-6 for ViT, 1e-5 for CLIP.
        norm: key of `layers.norm.NORMS`: "layer", or "rms" (AIMv2).
        gated_mlp: whether the MLP is gated; with the activation "silu" it is SwiGLU.
        qkv_bias: which of queries, keys and values have a bias: "qkv", "qv" (DINOv3) or "none".
        use_bias: whether the blocks' other linear layers have biases; not in AIMv2.
        class_token: whether there is a class token.
        distillation: whether there is a distillation token (Touvron et al. 2021).
        distillation_head: whether the distillation token, if there is one, has its own head.
        num_registers: number of learned tokens without a position (Darcet et al. 2024).
        pool: "class" (normalised class token), "mean" (mean of the normalised patches), "mean_norm"
            (norm of the mean of the patches, as in MAE's fine-tuning), "class_mean" ("class" and
            "mean" side by side: 2 D features, as in DINOv2's classifiers), "map" (attention pooling
            of the normalised tokens, as in SigLIP), "query" (attention of a learned query to the
            normalised tokens, as in AIMv2's dual encoder), or "none" for `features` alone, without
            a norm.
        position_init: "normal" or "sincos" for learned positions, "fixed_sincos" for fixed ones,
            "rotary" for none: queries and keys of patches are rotated instead (DINOv3).
        rotary_rescale: R; with "rotary", coordinates are scaled in training by a random factor that
            is log-uniform in [1 / R, R], one per step.
        position_resize: rule by which positions are resized for another grid, a name in
            `layers.grids.RESIZE_RULES`. Weights bring the rule of their format.
        position_grid: (rows, columns) of the table of positions where it is not that of the images:
            of learned ones (Qwen-VL), or of fixed ones that are resized for other grids, as MAE's
            authors and transformers do; fixed ones are otherwise computed for each grid.
        prefix_positions: whether class and distillation tokens have positions; not in DeiT III.
        pre_norm: whether a LayerNorm precedes the first block (CLIP).
        patch_bias: whether the patch embedding has a bias; not in CLIP.
        patch_norm: whether a norm of the patches precedes their positions (AIMv2).
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

    masks_padding: ClassVar[bool] = True  # of a `PatchSequence`

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    kernel_size: int | None = None
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    norm: str = "layer"
    gated_mlp: bool = False
    qkv_bias: str = "qkv"
    use_bias: bool = True
    class_token: bool = True
    distillation: bool = False
    distillation_head: bool = True
    num_registers: int = 0
    pool: str = "class"
    position_init: str = "normal"
    rotary_rescale: float = 1.0
    position_resize: str = DEFAULT_RULE
    position_grid: tuple[int, int] | None = None
    prefix_positions: bool = True
    pre_norm: bool = False
    patch_bias: bool = True
    patch_norm: bool = False
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
        reads_class = self.pool in ("class", "class_mean")
        if not self.class_token and (reads_class or self.distillation):
            found = f"pool={self.pool!r}" if reads_class else "distillation"
            raise UserError(f"{found} needs class_token=True")
        if self.kernel_size is not None and self.kernel_size < 1:
            raise UserError(f"kernel_size={self.kernel_size}: expected 1 px or more, or None")
        if self.head_norm and self.distillation:
            raise UserError("head_norm applies to a single head: set distillation=False")
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"patch_dropout={self.patch_dropout}: expected a fraction in [0, 1)")
        if self.rotary_rescale < 1:
            raise UserError(f"rotary_rescale={self.rotary_rescale}: expected 1 or more")
        if self.position_init == "rotary" and self.width // self.num_heads % 4:
            raise UserError(
                "position_init='rotary' needs heads of a multiple of 4 features; found "
                f"width={self.width}, num_heads={self.num_heads}"
            )
        _ = self.grid, self.block  # both check their own fields

    @property
    def grid(self) -> Size:
        """Rows and columns of patches of a training image."""
        size, drop = as_size(self.image_size), self.drop_remainder
        return grid_of(size, self.patch_size, f"image_size={size}", drop_remainder=drop)

    @property
    def kernel_side(self) -> int:
        """Side of the learned kernel of the patch embedding, px."""
        return self.kernel_size or self.patch_size

    @property
    def table_grid(self) -> Size:
        """Rows and columns of the table of positions."""
        return self.position_grid or self.grid

    @property
    def embed_dim(self) -> int:
        """Number of pooled features D."""
        return 2 * self.width if self.pool == "class_mean" else self.width

    @property
    def has_table(self) -> bool:
        """Whether positions are learned."""
        return self.position_init in ("normal", "sincos")

    @property
    def has_distillation_head(self) -> bool:
        """Whether there are two heads."""
        return self.distillation and self.distillation_head and self.num_classes > 0

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
        """Makes a parameter from that of another configuration, see `adaptation.adapt`."""
        return adapt(path, value, source, self) if isinstance(source, ViTConfig) else None

    def check_naflex(self) -> None:
        """Refuses architectures whose positions cannot be resized for each image of a batch.

        Raises:
            UserError: positions are not learned, or another rule than those with antialias.
        """
        if not self.has_table or self.position_resize not in ANTIALIASED:
            raise UserError(
                "images of several sizes (inputs.resize='naflex') need position_init='normal' or "
                f"'sincos' and position_resize out of {', '.join(ANTIALIASED)}; found "
                f"{self.position_init!r} and {self.position_resize!r}"
            )

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


class ViT(PatchTokens, PooledOutputs):
    """Images (B, H, W, 3) to features (B, D), or to logits (B, num_classes) with a head.

    A `PatchSequence` in place of images has patches of images of several sizes. Its padding changes
    no pooled feature; outputs per patch have padding as well.
    """

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
        self.config, self.dtype = config, dtype
        self._make_tokens(rngs)
        self.transformer = Transformer(
            config.block,
            config.depth,
            max_drop_path=config.drop_path,
            scan=scan,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self._make_outputs(rngs)

    def __call__(
        self, images: Images, *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch outputs"]:
        """Computes logits, or pooled features without a head.

        With two heads the logits are the mean of those of both (DeiT, section 4).

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            Logits (B, num_classes), float32, or features (B, D), compute type.
        """
        tokens, mask, _ = self._forward(images, rng, intermediates=False)
        if not self.config.num_classes:
            return self._pool(tokens, mask)
        return self._classify(tokens, mask, train=rng is not None)

    def both_logits(
        self, images: Images, *, rng: Key[Array, ""] | None = None
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
        if not self.config.has_distillation_head:
            raise UserError("this model has no distillation head: set distillation and num_classes")
        tokens, mask, _ = self._forward(images, rng, intermediates=False)
        return self._classify_twice(tokens, mask)

    def encode_image(
        self, images: Images, *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch dim"]:
        """Computes pooled features.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            rng: PRNG key for patch dropout and stochastic depth, or None for evaluation.

        Returns:
            (B, D), compute type.
        """
        tokens, mask, _ = self._forward(images, rng, intermediates=False)
        return self._pool(tokens, mask)

    def features(
        self, images: Images, layers: Sequence[int]
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
        *_, blocks = self._forward(images, None, intermediates=True)
        assert blocks is not None
        return [blocks[layer] for layer in layers]

    def encode_patches(
        self,
        images: Images,
        selected: Int[Array, "batch kept"],
    ) -> Float[Array, "batch tokens dim"]:
        """Computes normalised tokens from a subset of the patches (MAE, section 3).

        Args:
            images: (B, H, W, 3), normalised.
            selected: indices (B, K) of the patches that enter the first block.

        Returns:
            (B, num_prefix + K, D), compute type.
        """
        x, angles, mask = self._tokens(images, selected=selected)
        x, _ = self.transformer(x, angles=angles, mask=mask)
        return self.norm(x)

    def encode_patches_and_pool(
        self, images: Images, *, rng: Key[Array, ""] | None = None, replaced: Replaced = None
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch patches dim"]]:
        """Computes pooled features, see `encode_image`, and the normalised patches beside them.

        Args:
            images: (B, H, W, 3), normalised.
            rng: PRNG key for patch dropout and stochastic depth, or None for evaluation.
            replaced: mask of patches, and the token that takes their place (iBOT); None for none.

        Returns:
            (B, D) and (B, h w, D), compute type.
        """
        tokens, mask, _ = self._forward(images, rng, intermediates=False, replaced=replaced)
        return self._pool(tokens, mask), self.norm(tokens[:, self.config.num_prefix :])

    def layers_above(self) -> LayersAbove:
        """Counts the blocks between each part and the output; the head counts as one (BEiT)."""
        depth = self.config.depth
        first = ("patch_embed", "class_token", "distillation_token", "registers", "positions")
        above = dict.fromkeys((*first, "pre_norm"), depth + 1)
        return {**above, "transformer/blocks": range(depth, 0, -1)}

    def _forward(
        self, images: Images, rng: jax.Array | None, intermediates: bool, replaced: Replaced = None
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """Tokens after the last block, their mask, and the outputs of all blocks."""
        patch_rng, path_rng = (None, None) if rng is None else jax.random.split(rng)
        x, angles, mask = self._tokens(images, patch_rng, replaced=replaced)
        tokens, blocks = self.transformer(
            x, path_rng, angles=angles, mask=mask, intermediates=intermediates
        )
        return tokens, mask, blocks
