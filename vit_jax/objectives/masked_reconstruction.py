"""Masked reconstruction (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners")."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.models.mae.model import num_shown, patchify
from vit_jax.objectives.base import Batch, Context, Metrics, Objective, mean_over_examples


class MaskedReconstruction(Objective):
    """Mean squared error of a masked autoencoder's predictions of the hidden patches."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective.

        Attributes:
            mask_ratio: fraction of patches that are hidden, drawn anew for each image and step.
            normalize_pixels: whether the target of each patch has mean 0 and variance 1 (section
                4, "Reconstruction target").
        """

        mask_ratio: float = 0.75
        normalize_pixels: bool = True

    fields = ("image",)

    def __init__(self, config: Config, context: Context):
        """Checks that the model has a decoder.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: a model without a method `reconstruct`, or a ratio that hides or shows no
                patch.
        """
        super().__init__(config, context)
        if not hasattr(context.module, "reconstruct"):
            raise UserError(
                "config.objective.name='masked_reconstruction' predicts hidden patches: it needs a "
                f"model with a decoder, as mae_vit_b16; found {context.architecture_name}"
            )
        encoder = getattr(context.spec.architecture, "image", context.spec.architecture)
        self.num_patches, self.patch_size = math.prod(encoder.grid), encoder.patch_size
        if not 0 < num_shown(self.num_patches, config.mask_ratio) < self.num_patches:
            raise UserError(
                f"config.objective.mask_ratio={config.mask_ratio} of {self.num_patches} patches: "
                "expected a fraction that hides at least one and shows at least one"
            )

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss of a global batch of `image`, see `Objective`; there are no metrics."""
        if rng is None:
            noise_rng, model_rng = jax.random.key(0), None
        else:
            noise_rng, model_rng = jax.random.split(rng)
        # Drawn for the whole batch, so that masks do not depend on the microbatches.
        noise = jax.random.uniform(noise_rng, (len(batch["image"]), self.num_patches))
        (losses,) = self.context.microbatches.run(
            self._losses, model, (batch["image"], noise), model_rng
        )
        weight = batch.get("weight")
        return (
            jnp.mean(losses) if weight is None else mean_over_examples(losses[:, 0], weight)
        ), {}

    def _losses(
        self, model: Any, images: jax.Array, noise: jax.Array, rng: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        """Loss of each image, (B, 1). Every image hides the same number of patches."""
        del rng  # masked autoencoders have no dropout
        images = self.context.spec.inputs.normalize(images)
        pixels, mask = model.reconstruct(images, noise, self.config.mask_ratio)
        target = patchify(images.astype(jnp.float32), self.patch_size)
        if self.config.normalize_pixels:
            target = normalize_patches(target)
        return (hidden_error(pixels, target, mask)[:, None],)


def normalize_patches(
    patches: Float[Array, "*batch pixels"],
) -> Float[Array, "*batch pixels"]:
    """Scales each patch to mean 0 and unbiased variance 1, with 1e-6 added to the variance."""
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return (patches - mean) * jax.lax.rsqrt(variance + 1e-6)


def hidden_error(
    pixels: Float[Array, "batch patches pixels"],
    target: Float[Array, "batch patches pixels"],
    mask: Float[Array, "batch patches"],
) -> Float[Array, " batch"]:
    """Mean squared error over the hidden patches of each image.

    Args:
        pixels: predictions.
        target: pixels to predict.
        mask: 1 where a patch was hidden; at least one per image.
    """
    errors = jnp.mean((pixels - target) ** 2, axis=-1)
    return jnp.sum(errors * mask, axis=-1) / jnp.sum(mask, axis=-1)
