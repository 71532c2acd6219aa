"""Distillation through a token (Touvron et al. 2021, DeiT, section 4)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError, check_name
from vit_jax.models.definition import Params
from vit_jax.objectives.base import Batch, Context, FrozenModel, Metrics, mean_over_examples
from vit_jax.objectives.classification import Classification, cross_entropy

KINDS = ("hard", "soft")


class Distillation(Classification):
    """Labels train the head of the class token, a teacher trains that of the distillation token.

    The teacher sees the same images as the student, after mixup and cutmix, in its own
    normalisation. Blended labels apply to the class token only.

    Metrics: `accuracy` of the sum of both heads' logits, `teacher_accuracy`, `distillation_loss`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Classification.Config):
        """Keys of the objective, besides those of classification.

        Attributes:
            distillation: "hard" (the teacher's most likely class is a label) or "soft" (the
                teacher's distribution is the target).
            distillation_alpha: weight of the distillation loss; the loss of the labels has weight
                1 - alpha.
            distillation_temperature: temperature of both distributions, for "soft".
            teacher_weights: weight file of any known format, or workdir of an earlier run.
            teacher_model: registered model of the teacher, where the weights do not name it.
        """

        distillation: str = "hard"
        distillation_alpha: float = 0.5
        distillation_temperature: float = 3.0
        teacher_weights: str = ""
        teacher_model: str = ""

    config: Config

    def __init__(self, config: Config, context: Context):
        """Opens the teacher, without reading its parameters.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: an invalid key, a model without a distillation token, no teacher, or a
                teacher with another number of classes.
        """
        super().__init__(config, context)
        _check_config(config)
        _check_student(context)
        if not (config.teacher_weights or config.teacher_model):
            raise UserError(
                "config.objective.name='distillation' needs a teacher: set "
                "config.objective.teacher_weights to a weight file or to the workdir of a run, and "
                "config.objective.teacher_model where the weights do not name their model"
            )
        self.teacher = context.open_model(config.teacher_weights, config.teacher_model)
        self.teacher.spec.inputs.check_renormalized(context.spec.inputs)
        found = getattr(self.teacher.spec.architecture, "num_classes", 0)
        if found != self.num_classes:
            raise UserError(
                f"the teacher {config.teacher_weights or config.teacher_model} has {found} "
                f"classes, config.model.num_classes={self.num_classes}"
            )

    @property
    def abstract_constants(self) -> tuple[Params, ...]:  # type: ignore[override]
        """`ShapeDtypeStruct`s of the teacher's parameters."""
        return (self.teacher.abstract,)

    def load_constants(self) -> tuple[Params, ...]:
        """Reads the teacher's parameters."""
        return (self.teacher.load(),)

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch of `image` and `label` (B,), see `Objective`."""
        (teacher_params,) = constants
        images, targets, model_rng = self.mixed(batch, rng)

        def classify(model: Any, images: Any, rng: jax.Array | None) -> tuple[jax.Array, ...]:
            taught = jax.lax.stop_gradient(self._teach(self.teacher, teacher_params, images))
            return (*model.both_logits(images, rng=rng), taught)

        by_class, distilled, taught = self.context.microbatches.run(
            classify, model, (images,), model_rng
        )
        config, weight = self.config, batch.get("weight")
        own = cross_entropy(by_class, targets, config.loss, weight)
        following = distillation_loss(
            distilled, taught, config.distillation, config.distillation_temperature, weight
        )
        label = jnp.argmax(targets, axis=-1)
        student_correct = jnp.argmax(by_class + distilled, axis=-1) == label
        teacher_correct = jnp.argmax(taught, axis=-1) == label
        alpha = config.distillation_alpha
        return (1 - alpha) * own + alpha * following, {
            "accuracy": mean_over_examples(student_correct, weight),
            "teacher_accuracy": mean_over_examples(teacher_correct, weight),
            "distillation_loss": following,
        }

    def _teach(self, teacher: FrozenModel, params: Params, images: Any) -> jax.Array:
        """The teacher's logits for images in the student's normalisation."""
        own = teacher.spec.inputs.renormalize(images, self.context.spec.inputs)
        return teacher.model.bind(params)(own)


def _check_config(config: Distillation.Config) -> None:
    check_name(config.distillation, KINDS, "config.objective.distillation,")
    if not 0 <= config.distillation_alpha <= 1:
        raise UserError(
            f"config.objective.distillation_alpha={config.distillation_alpha}: expected a fraction "
            "in [0, 1]"
        )
    if config.distillation_temperature <= 0:
        raise UserError(
            f"config.objective.distillation_temperature={config.distillation_temperature}: "
            "expected a positive number"
        )


def _check_student(context: Context) -> None:
    has_heads = hasattr(context.module, "both_logits")
    if not has_heads or not getattr(context.spec.architecture, "distillation", True):
        raise UserError(
            "config.objective.name='distillation' trains a distillation token: it needs a model "
            f"with a second head, as a ViT with config.model.distillation=True; found "
            f"{context.architecture_name} without one"
        )


def distillation_loss(
    logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    kind: str,
    temperature: float,
    weight: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Mean distillation loss over examples, float32.

    Args:
        logits: logits of the student.
        teacher_logits: logits of the teacher.
        kind: "hard", the cross-entropy with the teacher's most likely class (equation 3), or
            "soft", temperature^2 KL(teacher || student) at that temperature (equation 2). The
            authors' code divides the latter by the number of classes as well, so that its weight is
            a thousandth on ImageNet.
        temperature: divisor of both logits, for "soft".
        weight: weight of each example, see `mean_over_examples`.
    """
    logits, taught = logits.astype(jnp.float32), teacher_logits.astype(jnp.float32)
    if kind == "hard":
        labels = jnp.argmax(taught, axis=-1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return mean_over_examples(losses, weight)
    log_student, log_teacher = (jax.nn.log_softmax(x / temperature) for x in (logits, taught))
    divergence = jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)
    return temperature**2 * mean_over_examples(divergence, weight)
