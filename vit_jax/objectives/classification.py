"""Supervised classification: cross-entropy, with label smoothing, mixup and cutmix."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from vit_jax.errors import UserError, check_name
from vit_jax.models.definition import Params
from vit_jax.objectives.base import Batch, Context, Metrics, Objective, mean_over_examples

LOSSES = ("softmax", "sigmoid")


class Classification(Objective):
    """Cross-entropy of a classifier's logits with the labels of images.

    Metrics: `accuracy`, the fraction of images whose largest logit is that of the largest target.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective.

        Attributes:
            loss: "softmax" (cross-entropy) or "sigmoid" (sum over classes of binary
                cross-entropies; Beyer et al. 2020, "Are we done with ImageNet?").
            label_smoothing: fraction of a label that is spread over all classes (Szegedy et al.
                2016).
            mixup_alpha: parameter of mixup's Beta distribution (Zhang et al. 2018); 0: no mixup.
            cutmix_alpha: parameter of cutmix's Beta distribution (Yun et al. 2019); 0: no cutmix.
                If both are set, each batch draws one of the two with equal probability, as in DeiT.
        """

        loss: str = "softmax"
        label_smoothing: float = 0.0
        mixup_alpha: float = 0.0
        cutmix_alpha: float = 0.0

    fields = ("image", "label")

    def __init__(self, config: Config, context: Context):
        """Checks that the model has a classification head.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: an unknown loss, a model without classes, or mixup of images of several
                sizes.
        """
        super().__init__(config, context)
        check_name(config.loss, LOSSES, "config.objective.loss,")
        if not context.num_classes:
            raise UserError(
                "this objective learns labels: it needs a model with a classification head; "
                f"{context.architecture_name} has none, or config.model.num_classes is 0"
            )
        if context.spec.inputs.is_naflex and (config.mixup_alpha or config.cutmix_alpha):
            raise UserError(
                "mixup and cutmix need images of one size; found config.model.inputs.resize="
                "'naflex': set mixup_alpha and cutmix_alpha to 0"
            )
        self.num_classes = context.num_classes

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch of `image` and `label` (B,), see `Objective`."""
        images, targets, model_rng = self.mixed(batch, rng)

        def classify(model: Any, images: Any, rng: jax.Array | None) -> tuple[jax.Array, ...]:
            return (model(images, rng=rng),)

        (logits,) = self.context.microbatches.run(classify, model, (images,), model_rng)
        weight = batch.get("weight")
        correct = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
        loss = cross_entropy(logits, targets, self.config.loss, weight)
        return loss, {"accuracy": mean_over_examples(correct, weight)}

    def mixed(
        self, batch: Batch, rng: Key[Array, ""] | None
    ) -> tuple[Any, Float[Array, "batch classes"], Key[Array, ""] | None]:
        """Images after mixup or cutmix, their targets, and a key for the model.

        Args:
            batch: `image` and `label`.
            rng: key; None for evaluation: images as they are, one-hot targets, no key.
        """
        images = self.images(batch)
        if rng is None:
            return images, smooth_labels(batch["label"], self.num_classes, 0.0), None
        mix_rng, model_rng = jax.random.split(rng)
        targets = smooth_labels(batch["label"], self.num_classes, self.config.label_smoothing)
        return *self._mix(images, targets, mix_rng), model_rng

    def _mix(self, images: Any, targets: jax.Array, rng: jax.Array) -> tuple[Any, jax.Array]:
        mixup_alpha, cutmix_alpha = self.config.mixup_alpha, self.config.cutmix_alpha
        if mixup_alpha and cutmix_alpha:
            choice, rng = jax.random.split(rng)
            return jax.lax.cond(
                jax.random.bernoulli(choice),
                lambda: mixup(images, targets, mixup_alpha, rng),
                lambda: cutmix(images, targets, cutmix_alpha, rng),
            )
        if mixup_alpha:
            return mixup(images, targets, mixup_alpha, rng)
        return cutmix(images, targets, cutmix_alpha, rng) if cutmix_alpha else (images, targets)


def smooth_labels(
    labels: Int[Array, " batch"], num_classes: int, smoothing: float
) -> Float[Array, "batch classes"]:
    """One-hot labels, of which a fraction is spread evenly over all classes.

    Args:
        labels: class of each example.
        num_classes: number of classes.
        smoothing: fraction that is spread.
    """
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def cross_entropy(
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
    loss: str,
    weight: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy over examples, float32.

    Args:
        logits: logits, any float dtype.
        targets: fractions in [0, 1].
        loss: "softmax", or "sigmoid" for the sum over classes of binary cross-entropies.
        weight: weight of each example, see `mean_over_examples`.
    """
    logits = logits.astype(jnp.float32)
    if loss == "softmax":
        return mean_over_examples(optax.softmax_cross_entropy(logits, targets), weight)
    losses = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)
    return mean_over_examples(losses, weight)


def mixup(
    images: Float[Array, "batch height width 3"],
    targets: Float[Array, "batch classes"],
    alpha: float,
    rng: Key[Array, ""],
) -> tuple[Float[Array, "batch height width 3"], Float[Array, "batch classes"]]:
    """Blends each example with the one at the mirrored position of the batch.

    Args:
        images: images.
        targets: targets.
        alpha: the fraction, one per batch, is drawn from Beta(alpha, alpha).
        rng: key.
    """
    fraction = jax.random.beta(rng, alpha, alpha)

    def blend(x: jax.Array) -> jax.Array:
        return fraction * x + (1 - fraction) * x[::-1]

    return blend(images), blend(targets)


def cutmix(
    images: Float[Array, "batch height width 3"],
    targets: Float[Array, "batch classes"],
    alpha: float,
    rng: Key[Array, ""],
) -> tuple[Float[Array, "batch height width 3"], Float[Array, "batch classes"]]:
    """Pastes a box of the example at the mirrored position of the batch, the same box in all.

    A box is clipped at the image border; targets are blended by the area that is pasted.

    Args:
        images: images.
        targets: targets.
        alpha: the fraction that is kept, one per batch, is drawn from Beta(alpha, alpha).
        rng: key.
    """
    fraction_rng, centre_rng = jax.random.split(rng)
    size = jnp.asarray(images.shape[1:3])
    side = jnp.sqrt(1 - jax.random.beta(fraction_rng, alpha, alpha))
    half = (size * side).astype(jnp.int32) // 2
    centre = jax.random.randint(centre_rng, (2,), 0, size)
    low, high = jnp.maximum(centre - half, 0), jnp.minimum(centre + half, size)
    rows, columns = (
        (jnp.arange(images.shape[1 + i]) >= low[i]) & (jnp.arange(images.shape[1 + i]) < high[i])
        for i in range(2)
    )
    box = (rows[:, None] & columns[None, :])[None, :, :, None]
    pasted = jnp.mean(box.astype(jnp.float32))
    return (
        jnp.where(box, images[::-1], images),
        (1 - pasted) * targets + pasted * targets[::-1],
    )
