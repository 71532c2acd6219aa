"""Image-text contrastive learning: CLIP's softmax and SigLIP's sigmoid."""

from typing import Any

import jax

from vit_jax.objectives.contrastive_loss import contrastive_loss


class Contrastive:
    """Aligns each picture with its caption against all others of the global batch.

    Reads `image` (B, H, W, 3), normalised, and `tokens` (B, context_length).
    """

    def __init__(self, kind: str, **loss_options: Any):
        """Chooses the loss.

        Args:
            kind: "softmax" or "sigmoid".
            **loss_options: form, mesh, batch axes and tile size, see `contrastive_loss`.
        """
        self.kind, self.loss_options = kind, loss_options

    def __call__(
        self, model: Any, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss (scalar, float32) and metrics (scalars) of a global batch."""
        image_rng, text_rng = jax.random.split(rng)
        images = model.encode_image(batch["image"], normalize=True, rng=image_rng)
        texts = model.encode_text(batch["tokens"], normalize=True, rng=text_rng)
        scale, bias = model.logit_parameters()
        loss, metrics = contrastive_loss(
            images, texts, logit_scale=scale, logit_bias=bias, kind=self.kind, **self.loss_options
        )
        metrics = {**metrics, "logit_scale": scale}
        if bias is not None:
            metrics["logit_bias"] = bias
        return loss, metrics
