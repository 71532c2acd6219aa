"""Masked reconstruction (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners")."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.models.mae.model import patchify
from vit_jax.objectives.microbatches import Microbatches


class MaskedReconstruction:
    """Teaches a masked autoencoder to predict the patches it does not see.

    Reads `image` (B, ...), whatever `prepare` makes images of.
    """

    reads = ("image",)

    def __init__(
        self,
        *,
        prepare: Callable[[jax.Array], jax.Array],
        num_patches: int,
        patch_size: int,
        mask_ratio: float = 0.75,
        normalize_pixels: bool = True,
        parts: Microbatches | None = None,
    ):
        """Chooses what is hidden and what is predicted.

        Args:
            prepare: images as they come to the model's input.
            num_patches: of an image.
            patch_size: side of a patch, px.
            mask_ratio: fraction of patches that are hidden, others in each image and step.
            normalize_pixels: whether the target of each patch has mean 0 and variance 1 (section 4,
                "Reconstruction target").
            parts: how the batch is cut; by default not at all.
        """
        self.prepare, self.num_patches, self.patch_size = prepare, num_patches, patch_size
        self.mask_ratio, self.normalize_pixels = mask_ratio, normalize_pixels
        self.parts = parts or Microbatches()

    def __call__(
        self, model: Any, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss (scalar, float32) of a global batch; no metrics."""
        noise_rng, model_rng = jax.random.split(rng)
        # Drawn for the whole batch, so that the masks do not depend on how it is cut.
        noise = jax.random.uniform(noise_rng, (len(batch["image"]), self.num_patches))
        (losses,) = self.parts.run(self._losses, model, (batch["image"], noise), model_rng)
        return jnp.mean(losses), {}

    def _losses(
        self, model: Any, images: jax.Array, noise: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Loss of each image, (B, 1). All hide equally many patches: the mean is that of all."""
        del rng  # a masked autoencoder drops nothing
        images = self.prepare(images)
        pixels, mask = model.reconstruct(images, noise, self.mask_ratio)
        target = patchify(images.astype(jnp.float32), self.patch_size)
        if self.normalize_pixels:
            target = normalize_patches(target)
        return (hidden_error(pixels, target, mask)[:, None],)


def normalize_patches(patches: jax.Array) -> jax.Array:
    """Each patch (..., P) with mean 0 and unbiased variance 1, but for 1e-6 under the root."""
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return (patches - mean) * jax.lax.rsqrt(variance + 1e-6)


def hidden_error(pixels: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean squared error of each image's hidden patches, (B,) float32.

    Args:
        pixels: predictions (B, N, P).
        target: (B, N, P).
        mask: (B, N), 1 where a patch was hidden, at least one an image.
    """
    errors = jnp.mean((pixels - target) ** 2, axis=-1)
    return jnp.sum(errors * mask, axis=-1) / jnp.sum(mask, axis=-1)
