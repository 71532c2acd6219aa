"""Image-text contrastive learning: CLIP's softmax and SigLIP's sigmoid."""

from collections.abc import Callable
from typing import Any

import jax

from vit_jax.objectives.contrastive.loss import contrastive_loss
from vit_jax.objectives.microbatches import Microbatches


class Contrastive:
    """Aligns each image with its caption against all others of the global batch.

    Reads `image` (B, ...), whatever `prepare` makes images of, and `tokens` (B, context_length).
    """

    reads = ("image", "tokens")

    def __init__(
        self,
        kind: str,
        *,
        prepare: Callable[[jax.Array], jax.Array],
        parts: Microbatches | None = None,
        **loss_options: Any,
    ):
        """Chooses the loss.

        Args:
            kind: "softmax" or "sigmoid".
            prepare: images as they come to the model's input, part by part.
            parts: how the batch goes through the towers, by default whole. The loss compares all
                pairs of the whole batch in any case.
            **loss_options: form, mesh, batch axes and tile size, see `contrastive_loss`.
        """
        self.kind, self.prepare, self.parts = kind, prepare, parts or Microbatches()
        self.loss_options = loss_options

    def __call__(
        self, model: Any, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss (scalar, float32) and metrics (scalars) of a global batch."""
        arrays = (batch["image"], batch["tokens"])
        images, texts = self.parts.run(self._embed, model, arrays, rng)
        scale, bias = model.logit_parameters()
        loss, metrics = contrastive_loss(
            images, texts, logit_scale=scale, logit_bias=bias, kind=self.kind, **self.loss_options
        )
        metrics = {**metrics, "logit_scale": scale}
        if bias is not None:
            metrics["logit_bias"] = bias
        return loss, metrics

    def _embed(
        self, model: Any, images: jax.Array, tokens: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Unit vectors (B, D) of images and of texts."""
        image_rng, text_rng = jax.random.split(rng)
        return (
            model.encode_image(self.prepare(images), normalize=True, rng=image_rng),
            model.encode_text(tokens, normalize=True, rng=text_rng),
        )
