"""Text transformer (Radford et al. 2021, "Learning Transferable Visual Models", section 2.4)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Int, Key

from vit_jax.errors import UserError, check_name
from vit_jax.models.layers.grids import TEXT_RULES, can_fit_text, fit_text_positions
from vit_jax.models.layers.norm import NORMS
from vit_jax.models.layers.parameters import LayersAbove, check_layers, metadata
from vit_jax.models.layers.transformer import BlockConfig, Transformer

POOLS = ("eot", "last")
CLASS_POSITIONS = ("end", "middle", "front")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Architecture of a text tower.

    Attributes:
        vocab_size: number of token ids.
        context_length: number of tokens that a caption is padded or cut to.
        width: number of features D of the residual stream.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden units of the MLP.
        activation: key of `layers.mlp.ACTIVATIONS`.
        norm_epsilon: epsilon of the norms.
        norm: key of `layers.norm.NORMS`: "layer", or "rms" (AIMv2).
        gated_mlp: whether the MLP is gated; with the activation "silu" it is SwiGLU.
        qkv_bias: which of queries, keys and values have a bias: "qkv", "qv" or "none" (AIMv2).
        use_bias: whether the other linear layers of the blocks have biases; not in AIMv2.
        causal: whether a token attends only to those before it and to itself.
        pool: token that features are taken from: "eot" (the end of text, CLIP) or "last" (the last
            one, padding or not, SigLIP).
        end_id: id of the end of text, whose first occurrence is pooled with "eot"; None for the
            largest id of a text.
        weight_init: key of `layers.block_init.BLOCK_INITS`.
        position_resize: how positions of another context length are fitted: "cut" (the first ones
            are kept), "linear" (interpolated, as in open_clip), or "" to refuse them.
        prompt_length: number M of learned vectors that stand in every text as if they were tokens
            (CoOp, Zhou et al. 2022, section 3.2). They have positions of their own: for weights of
            77 positions, `context_length` is 77 - M.
        prompt_after: number of tokens before them: 1 for a vocabulary that opens texts, as CLIP's,
            0 for others.
        prompt_classes: number C of classes that have vectors of their own (CoOp's class-specific
            contexts); 0 for vectors that all texts share. A text then has one token more, which
            names its class, and which its vectors replace: for weights of 77 positions,
            `context_length` is 78 - M. See `data.tokenizers.classes`.
        class_position: place of the words of a text in relation to its vectors: "end" (after all of
            them), "middle" (after the first M // 2; the others stand before the end of text) or
            "front" (all stand before the end of text).
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048
    activation: str = "quick_gelu"
    norm_epsilon: float = 1e-5
    norm: str = "layer"
    gated_mlp: bool = False
    qkv_bias: str = "qkv"
    use_bias: bool = True
    causal: bool = True
    pool: str = "eot"
    end_id: int | None = None
    weight_init: str = "clip"
    position_resize: str = ""
    prompt_length: int = 0
    prompt_after: int = 1
    prompt_classes: int = 0
    class_position: str = "end"

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_name(self.position_resize, TEXT_RULES, "position_resize of the text tower")
        check_name(self.pool, POOLS, "pool of the text tower")
        if self.prompt_length < 0 or self.prompt_after not in (0, 1):
            raise UserError(
                f"text tower: expected prompt_length of at least 0 and prompt_after of 0 or 1; "
                f"found {self.prompt_length} and {self.prompt_after}"
            )
        check_name(self.class_position, CLASS_POSITIONS, "class_position of the text tower")
        if self.prompt_classes < 0 or (self.prompt_classes and not self.prompt_length):
            raise UserError(
                "text tower: expected prompt_classes of at least 0, and a prompt_length above 0 "
                f"with classes; found {self.prompt_classes} and {self.prompt_length}"
            )
        if self.class_position != "end" and self.pool != "eot" and self.end_id is None:
            raise UserError(
                f"text tower: class_position={self.class_position!r} places vectors before the end "
                "of text: set end_id to its id"
            )
        self.block  # noqa: B018 - checks its own fields

    def adapt(self, path: str, value: jax.Array | None, source: Any) -> jax.Array | None:
        """Makes the parameter `path` from that of another configuration, for fine-tuning.

        Positions are fitted to the length of texts in this model by its own rule.

        Args:
            path: path of the parameter.
            value: parameter of the source; None if it has none at this path.
            source: config of the source.

        Returns:
            The parameter, or None if the source's own value applies.
        """
        del source
        if path != "positions" or value is None:
            return None
        if not can_fit_text(value.shape[0], self.num_positions, self.position_resize):
            return None
        return fit_text_positions(value, self.num_positions, self.position_resize)

    @property
    def num_positions(self) -> int:
        """Length of a text with its prompt, which replaces the token of a class."""
        return self.context_length + self.prompt_length - (self.prompt_classes > 0)

    @property
    def block(self) -> BlockConfig:
        """Configuration of the blocks."""
        return BlockConfig(
            width=self.width,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            norm=self.norm,
            gated_mlp=self.gated_mlp,
            qkv_bias=self.qkv_bias,
            use_bias=self.use_bias,
            causal=self.causal,
            weight_init=self.weight_init,
        )


class TextTransformer(nnx.Module):
    """Tokens (B, context_length) to features (B, D)."""

    def __init__(
        self,
        config: TextConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        scan: bool = True,
        remat: str = "none",
    ) -> None:
        """Builds the tower.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            scan: whether to scan the blocks or to unroll them.
            remat: key of `layers.stacking.REMAT_POLICIES`.
        """
        self.config, self.dtype = config, dtype
        self.token_embed = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=initializers.normal(0.02),
            embedding_metadata=metadata("vocab", "embed", decay=False),
            dtype=dtype,
            rngs=rngs,
        )
        self.positions = nnx.Param(
            initializers.normal(0.01)(rngs.params(), (config.num_positions, config.width)),
            **metadata("length", "embed", decay=False),
        )
        if config.prompt_length:
            own = config.prompt_classes > 0
            shape = (*[config.prompt_classes] * own, config.prompt_length, config.width)
            axes = (*["classes"] * own, "length", "embed")
            self.prompt = nnx.Param(
                initializers.normal(0.02)(rngs.params(), shape), **metadata(*axes, decay=False)
            )
        self.transformer = Transformer(
            config.block,
            config.depth,
            scan=scan,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = NORMS[config.norm](
            config.width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs
        )

    @property
    def embed_dim(self) -> int:
        """Number of pooled features D."""
        return self.config.width

    def encode_text(
        self, tokens: Int[Array, "batch length"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch dim"]:
        """Computes pooled features.

        Args:
            tokens: ids (B, context_length), padded after the end of text.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, D), compute type.
        """
        x, _ = self._forward(tokens, rng, intermediates=False)
        return self.pool(x, tokens)

    def features(
        self, tokens: Int[Array, "batch length"], layers: Sequence[int]
    ) -> list[Float[Array, "batch length dim"]]:
        """Computes the outputs of blocks, without the final norm.

        Args:
            tokens: ids (B, context_length).
            layers: indices of blocks; negative ones count from the last.

        Returns:
            One array (B, context_length, D) per index; with a prompt, its M vectors are included.

        Raises:
            UserError: a block that does not exist.
        """
        check_layers(layers, self.config.depth)
        _, blocks = self._forward(tokens, None, intermediates=True)
        assert blocks is not None
        return [blocks[layer] for layer in layers]

    def states(
        self, tokens: Int[Array, "batch length"], *, clip_skip: int = 0, final_norm: bool = True
    ) -> Float[Array, "batch length dim"]:
        """Computes the features of all tokens, which diffusion models read.

        Args:
            tokens: ids (B, context_length).
            clip_skip: number of last blocks that are left out.
            final_norm: whether to apply the tower's final norm.

        Returns:
            (B, context_length, D), compute type; with a prompt, its M vectors are included.

        Raises:
            UserError: a negative `clip_skip`, or one that leaves out all blocks.
        """
        if clip_skip < 0:
            raise UserError(f"clip_skip={clip_skip}: expected 0 or more")
        [states] = self.features(tokens, layers=(-1 - clip_skip,))
        return self.norm(states) if final_norm else states

    def pool(
        self, x: Float[Array, "batch length dim"], tokens: Int[Array, "batch tokens"]
    ) -> Float[Array, "batch dim"]:
        """Normalises and pools the token that `config.pool` names.

        Args:
            x: output of the last block (B, M + context_length, D).
            tokens: ids (B, context_length).

        Returns:
            (B, D), compute type.
        """
        if self.config.pool == "last":
            return self.norm(x[:, -1])
        end = self._end_of_text(tokens) + self.config.num_positions - self.config.context_length
        return self.norm(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])

    def layers_above(self) -> LayersAbove:
        """Counts the blocks between each part and the output; the projection counts as one."""
        depth = self.config.depth
        return {
            "token_embed": depth + 1,
            "positions": depth + 1,
            "prompt": depth + 1,
            "transformer/blocks": range(depth, 0, -1),
        }

    def _forward(
        self, tokens: jax.Array, rng: jax.Array | None, intermediates: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        if tokens.shape[1] != self.config.context_length:
            raise UserError(
                f"found {tokens.shape[1]} tokens per caption, the text tower expects "
                f"context_length={self.config.context_length}"
            )
        x = self._embed_prompted(tokens) if self.config.prompt_length else self.token_embed(tokens)
        x += self.positions[...].astype(self.dtype)
        return self.transformer(x, rng, intermediates=intermediates)

    def _embed_prompted(self, tokens: jax.Array) -> jax.Array:
        """Embeddings of tokens and of the learned vectors among them (B, num_positions, D)."""
        config, prompt = self.config, self.prompt[...].astype(self.dtype)
        if config.prompt_classes:
            marks = tokens[:, config.prompt_after]
            tokens = jnp.delete(tokens, config.prompt_after, axis=1)
            # A text without a class becomes NaN, rather than get the vectors of any class.
            classes = jnp.where(marks < 0, -1 - marks, config.prompt_classes)
            prompt = prompt.at[classes].get(mode="fill", fill_value=jnp.nan)
        x = self.token_embed(tokens)
        prompts = jnp.broadcast_to(prompt, (x.shape[0], *prompt.shape[-2:]))
        length = config.prompt_length
        before = {"end": length, "middle": length // 2, "front": 0}[config.class_position]
        if before == length:
            first, rest = jnp.split(x, [config.prompt_after], axis=1)
            return jnp.concatenate([first, prompts, rest], axis=1)
        # Each vector stands before a token: the first word or the end of text. Sorting by these
        # places keeps the order of the vectors.
        end = self._end_of_text(tokens)[:, None]
        places = jnp.where(jnp.arange(length) < before, config.prompt_after, end) - 0.5
        own = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        order = jnp.argsort(jnp.concatenate([own, places], axis=1), axis=1, stable=True)
        return jnp.take_along_axis(jnp.concatenate([x, prompts], 1), order[..., None], axis=1)

    def _end_of_text(self, tokens: jax.Array) -> jax.Array:
        """Position of the end of each text (B,)."""
        # Without its id, the end of text has the largest one. argmax finds the first occurrence.
        end_id = self.config.end_id
        return jnp.argmax(tokens if end_id is None else tokens == end_id, axis=-1)
