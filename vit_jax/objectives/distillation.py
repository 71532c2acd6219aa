"""Distillation through a token (Touvron et al. 2021, DeiT, section 4)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.errors import UserError, check_name
from vit_jax.models.definition import Params
from vit_jax.objectives.classification import Classification, cross_entropy

KINDS = ("hard", "soft")
# (parameters, images as the student sees them) -> logits (B, num_classes).
Teacher = Callable[[Params, jax.Array], jax.Array]


class Distillation(Classification):
    """Teaches the class token the labels and the distillation token what a teacher says.

    Reads what `Classification` reads. The teacher sees the very images of the student, mixed ones
    too; the labels that mixing blends are the class token's alone.
    """

    def __init__(
        self,
        *args: Any,
        teacher: Teacher,
        kind: str,
        alpha: float,
        temperature: float,
        **kwargs: Any,
    ):
        """Chooses how the teacher is followed.

        Args:
            *args: see `Classification`.
            teacher: the teacher's logits.
            kind: "hard" (its likeliest class is a label) or "soft" (its distribution).
            alpha: weight of the teacher's loss; that of the labels has the rest.
            temperature: of both distributions, for "soft".
            **kwargs: see `Classification`.

        Raises:
            UserError: an unknown kind, or a number out of its range.
        """
        super().__init__(*args, **kwargs)
        check_name(kind, KINDS, "config.objective.distillation,")
        if not 0 <= alpha <= 1:
            raise UserError(
                f"config.objective.distillation_alpha={alpha}: expected a share in [0, 1]"
            )
        if temperature <= 0:
            raise UserError(
                f"config.objective.distillation_temperature={temperature}: expected a positive "
                "number"
            )
        self.teacher, self.kind = teacher, kind
        self.alpha, self.temperature = alpha, temperature

    def __call__(
        self, model: Any, batch: dict[str, jax.Array], rng: jax.Array, *frozen: Params
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss (scalar, float32) and metrics of a global batch.

        Args:
            model: with a distillation head.
            batch: `image` and `label`.
            rng: key.
            *frozen: the teacher's parameters.

        Returns:
            The loss, and `accuracy` of both heads' mean, `teacher_accuracy` on the same labels,
            `distillation_loss`.
        """
        (teacher_params,) = frozen
        images, targets, model_rng = self.mixed(batch, rng)

        def classify(model: Any, images: jax.Array, rng: jax.Array) -> tuple[jax.Array, ...]:
            taught = jax.lax.stop_gradient(self.teacher(teacher_params, images))
            return (*model.both_logits(images, rng=rng), taught)

        by_class, distilled, taught = self.parts.run(classify, model, (images,), model_rng)
        own = cross_entropy(by_class, targets, self.loss)
        following = distillation_loss(distilled, taught, self.kind, self.temperature)
        label = jnp.argmax(targets, axis=-1)
        return (1 - self.alpha) * own + self.alpha * following, {
            "accuracy": jnp.mean(jnp.argmax(by_class + distilled, axis=-1) == label),
            "teacher_accuracy": jnp.mean(jnp.argmax(taught, axis=-1) == label),
            "distillation_loss": following,
        }


def distillation_loss(
    logits: jax.Array, teacher_logits: jax.Array, kind: str, temperature: float
) -> jax.Array:
    """Mean over examples, float32.

    Args:
        logits: of the student (B, C).
        teacher_logits: (B, C).
        kind: "hard", the cross-entropy with the teacher's likeliest class (equation 3), or "soft",
            temperature^2 KL(teacher || student) at that temperature (equation 2). The authors' code
            divides the latter by C as well, so that its weight is a thousandth on ImageNet.
        temperature: divides both logits.
    """
    logits, taught = logits.astype(jnp.float32), teacher_logits.astype(jnp.float32)
    if kind == "hard":
        labels = jnp.argmax(taught, axis=-1)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    log_student, log_teacher = (jax.nn.log_softmax(x / temperature) for x in (logits, taught))
    divergence = jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)
    return temperature**2 * jnp.mean(divergence)
