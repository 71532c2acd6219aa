"""Supervised classification: cross-entropy, with label smoothing, mixup and cutmix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.errors import check_name
from vit_jax.objectives.microbatches import Microbatches

LOSSES = ("softmax", "sigmoid")


class Classification:
    """Teaches a classifier the labels of images.

    Reads `image` (B, ...), whatever `prepare` makes images of, and `label` (B,) int32.
    """

    reads = ("image", "label")

    def __init__(
        self,
        loss: str,
        *,
        num_classes: int,
        prepare: Callable[[jax.Array], jax.Array],
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        parts: Microbatches | None = None,
    ):
        """Chooses the loss.

        Args:
            loss: "softmax" (cross-entropy) or "sigmoid" (sum over classes of binary ones, Beyer et
                al. 2020, "Are we done with ImageNet?").
            num_classes: outputs of the model.
            prepare: images as they come to the model's input.
            label_smoothing: fraction of a label that all classes divide (Szegedy et al. 2016).
            mixup_alpha: parameter of mixup's Beta distribution (Zhang et al. 2018); 0 for none.
            cutmix_alpha: the same of cutmix (Yun et al. 2019). With both, each batch draws one of
                them, as in DeiT.
            parts: how the batch is cut; by default not at all.
        """
        check_name(loss, LOSSES, "config.objective.loss,")
        self.loss, self.num_classes, self.prepare = loss, num_classes, prepare
        self.label_smoothing = label_smoothing
        self.alphas = (mixup_alpha, cutmix_alpha)
        self.parts = parts or Microbatches()

    def __call__(
        self, model: Any, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss (scalar, float32) and accuracy of a global batch, on the mixed labels' largest."""
        images, targets, model_rng = self.mixed(batch, rng)

        def classify(model: Any, images: jax.Array, rng: jax.Array) -> tuple[jax.Array, ...]:
            return (model(images, rng=rng),)

        (logits,) = self.parts.run(classify, model, (images,), model_rng)
        right = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
        return cross_entropy(logits, targets, self.loss), {"accuracy": jnp.mean(right)}

    def mixed(
        self, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Images (B, H, W, 3), their targets (B, num_classes), and a key for the model."""
        mix_rng, model_rng = jax.random.split(rng)
        images = self.prepare(batch["image"])
        targets = smooth_labels(batch["label"], self.num_classes, self.label_smoothing)
        return *self._mix(images, targets, mix_rng), model_rng

    def _mix(
        self, images: jax.Array, targets: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        mixup_alpha, cutmix_alpha = self.alphas
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


def smooth_labels(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Labels (B,) as distributions (B, num_classes): one hot, of which all classes share a part."""
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits: jax.Array, targets: jax.Array, loss: str) -> jax.Array:
    """Mean over examples, float32.

    Args:
        logits: (B, C).
        targets: (B, C), fractions in [0, 1].
        loss: "softmax", or "sigmoid" for the sum over classes of binary cross-entropies.
    """
    logits = logits.astype(jnp.float32)
    if loss == "softmax":
        return jnp.mean(optax.softmax_cross_entropy(logits, targets))
    return jnp.mean(jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1))


def mixup(
    images: jax.Array, targets: jax.Array, alpha: float, rng: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Blends each example with the one at the mirrored place of the batch, all by one share.

    Args:
        images: (B, H, W, 3).
        targets: (B, C).
        alpha: the share is drawn from Beta(alpha, alpha).
        rng: key.
    """
    share = jax.random.beta(rng, alpha, alpha)
    blend = lambda x: share * x + (1 - share) * x[::-1]  # noqa: E731
    return blend(images), blend(targets)


def cutmix(
    images: jax.Array, targets: jax.Array, alpha: float, rng: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Pastes a box of the example at the mirrored place of the batch, the same box in all.

    Labels are blended by the area that is really pasted: a box is cut off at the border.

    Args:
        images: (B, H, W, 3).
        targets: (B, C).
        alpha: the share that stays is drawn from Beta(alpha, alpha).
        rng: key.
    """
    share_rng, centre_rng = jax.random.split(rng)
    size = jnp.asarray(images.shape[1:3])
    side = jnp.sqrt(1 - jax.random.beta(share_rng, alpha, alpha))
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
