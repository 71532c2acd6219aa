"""Contrast and captions in one step: CoCa (Yu et al. 2022), SigLIP 2 (Tschannen et al. 2025)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.objectives.base import Batch, Context, Metrics, check_range
from vit_jax.objectives.captioning import draw_parallel
from vit_jax.objectives.contrastive.objective import Contrastive
from vit_jax.objectives.token_loss import caption_sums


class ContrastiveCaptioning(Contrastive):
    """Weighted sum of a contrastive loss and of the cross-entropy of captions.

    Each tower runs once per step for both losses.

    Metrics: those of `contrastive`, `contrastive_loss` and `caption_loss`, unweighted, and
    `token_accuracy`, the fraction of tokens with the largest logit.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Contrastive.Config):
        """Keys of the objective, besides those of `contrastive`; the defaults are those of CoCa.

        Attributes:
            contrastive_weight: weight of the contrastive loss.
            caption_weight: weight of the cross-entropy of captions; 1 in SigLIP 2.
            token_mean: whether the latter is the mean over the tokens of all captions of the batch
                (CoCa), or over captions of the mean over their tokens (CapPa, SigLIP 2). Padding
                does not count.
            parallel_fraction: see `captioning`; 0.5 in SigLIP 2, not for CoCa.
            chunk_tokens: number of tokens per device whose logits exist at a time.
        """

        contrastive_weight: float = 1.0
        caption_weight: float = 2.0
        token_mean: bool = True
        parallel_fraction: float = 0.0
        chunk_tokens: int = 1024

    config: Config
    takes_several_captions = False

    def __init__(self, config: Config, context: Context):
        """Checks that the model embeds pairs and predicts captions.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: a key that is not in its range, or a model without a decoder of captions.
        """
        if not hasattr(context.module, "encode_pairs"):
            raise UserError(
                "config.objective.name='contrastive_captioning' needs a dual encoder with a "
                f"decoder of captions, as coca_vit_b32; found {context.architecture_name}"
            )
        super().__init__(config, context)
        check_range("contrastive_weight", config.contrastive_weight)
        check_range("caption_weight", config.caption_weight)
        check_range("parallel_fraction", config.parallel_fraction, 0, 1)
        check_range("chunk_tokens", config.chunk_tokens, 1)
        if config.parallel_fraction and context.module.num_given:
            raise UserError(
                f"config.objective.parallel_fraction={config.parallel_fraction}: the decoder of "
                f"{context.architecture_name} reads the states of tokens, expected 0"
            )

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch of `image` and `tokens` (B, length)."""
        config, tokens = self.config, batch["tokens"]
        parallel, model_rng = draw_parallel(rng, config.parallel_fraction, len(tokens))
        arrays = (batch["image"], tokens, parallel)
        images, texts, sums = self.context.microbatches.run(self._encode, model, arrays, model_rng)
        contrast, metrics = self.compare(model, images, texts)
        if config.token_mean:
            means = jnp.sum(sums[:, :2], axis=0) / jnp.maximum(jnp.sum(sums[:, 2]), 1)
        else:
            means = jnp.mean(sums[:, :2] / jnp.maximum(sums[:, 2:], 1), axis=0)
        caption, accuracy = means
        return config.contrastive_weight * contrast + config.caption_weight * caption, {
            **metrics,
            "contrastive_loss": contrast,
            "caption_loss": caption,
            "token_accuracy": accuracy,
        }

    def _encode(
        self,
        model: Any,
        images: jax.Array,
        tokens: jax.Array,
        parallel: jax.Array,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, ...]:
        """Embeddings (B, D) of images and texts, and sums over tokens (B, 3)."""
        pixels = self.context.spec.inputs.normalize(images)
        drawn = parallel if self.config.parallel_fraction else None
        image, text, states = model.encode_pairs(pixels, tokens, drawn, rng=rng)
        return image, text, caption_sums(model, tokens, states, self.config.chunk_tokens)
