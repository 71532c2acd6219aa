"""CLIP's text tower without the image tower (Radford et al. 2021, section 2.4)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vit_jax.models.clip.model import as_embedding, projection
from vit_jax.models.clip.text import TextConfig, TextTransformer
from vit_jax.models.layers.parameters import LayersAbove, nested


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Architecture of a text encoder.

    Attributes:
        text: architecture of the text tower.
        embed_dim: size of the embedding space shared with images; 0 for no projection.
        skipped_blocks: number of last blocks whose outputs `text_states` leaves out.
        final_norm: whether `text_states` applies the final norm.
    """

    text: TextConfig
    embed_dim: int = 0
    skipped_blocks: int = 0
    final_norm: bool = True

    def make(self, **execution: Any) -> "CLIPText":
        """Builds the module with fresh parameters; the arguments are those of `CLIPText`."""
        return CLIPText(self, **execution)


class CLIPText(nnx.Module):
    """Tokens (B, context_length) to states (B, context_length, D) and embeddings."""

    def __init__(
        self,
        config: CLIPTextConfig,
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
        self.text = TextTransformer(config.text, dtype=dtype, scan=scan, remat=remat, rngs=rngs)
        if config.embed_dim:
            self.text_projection = projection(
                config.text.width, config.embed_dim, dtype=dtype, rngs=rngs
            )

    def text_states(
        self, tokens: Int[Array, "batch length"], *, clip_skip: int = 0
    ) -> Float[Array, "batch length dim"]:
        """Computes the features of all tokens that a diffusion model reads.

        Args:
            tokens: ids (B, context_length).
            clip_skip: number of last blocks that are left out, besides `skipped_blocks`.

        Returns:
            (B, context_length, D), compute type.

        Raises:
            UserError: a negative `clip_skip`, or one that leaves out all blocks.
        """
        skipped = clip_skip + self.config.skipped_blocks if clip_skip >= 0 else clip_skip
        return self.text.states(tokens, clip_skip=skipped, final_norm=self.config.final_norm)

    def encode_text(
        self,
        tokens: Int[Array, "batch length"],
        *,
        normalize: bool = False,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch dim"]:
        """Computes the features of the end of text, projected if there is a projection.

        Args:
            tokens: ids (B, context_length).
            normalize: whether to scale the features to length 1.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, embed_dim or D), float32.
        """
        pooled = self.text.encode_text(tokens, rng=rng)
        return as_embedding(
            self.text_projection(pooled) if self.config.embed_dim else pooled, normalize
        )

    def layers_above(self) -> LayersAbove:
        """Counts the layers above each part."""
        return nested("text", self.text)
