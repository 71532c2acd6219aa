"""Self-distillation: DINO's loss of crops, iBOT's loss of masked patches, and KoLeo (DINOv2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.data.crops import GLOBAL, LOCAL, MASK, NUM_GLOBAL, Crops
from vit_jax.errors import UserError, check_name
from vit_jax.models.definition import Params
from vit_jax.models.partitioning import constrain
from vit_jax.models.sizes import grid_of
from vit_jax.objectives.base import PROGRESS, Batch, Context, Metrics, Objective, check_range
from vit_jax.objectives.self_distillation.assignment import (
    Assignment,
    centred,
    cross_entropy,
    moved_centre,
    sinkhorn,
    split_prototypes,
)
from vit_jax.objectives.self_distillation.koleo import koleo

CENTERINGS = ("sinkhorn", "mean")


class SelfDistillation(Objective):
    """A student follows a teacher, the moving average of its own parameters, across crops.

    The teacher is `TrainState.ema`, `config.optim.ema_decay` and `ema_schedule` say how fast it
    moves, and it is what evaluations, exports and later runs read.

    Loss, for images with two global and N local crops (Oquab et al. 2024, DINOv2, section 4):

    - DINO: the mean cross-entropy of the student's class token of one crop with the teacher's of
      another global crop, over the 2 + 2 N pairs;
    - iBOT: the mean cross-entropy of the student's and the teacher's token of the same patch, over
      the masked patches of a crop, then over all global crops; the half without a mask counts as 0;
    - KoLeo: of the student's class tokens, before the head, for each of the two global crops.

    Metrics: `dino_loss`, `ibot_loss`, `koleo_loss`, unweighted, and `teacher_temperature`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective.

        Attributes:
            dino_weight: weight of the loss of crops.
            ibot_weight: weight of the loss of masked patches; 0: no patches are masked (DINO).
            koleo_weight: weight of the KoLeo regulariser; 0 for none.
            centering: "sinkhorn" (DINOv2) or "mean" (DINO), see
                `objectives.self_distillation.assignment`.
            sinkhorn_iterations: number of iterations of Sinkhorn and Knopp.
            centre_momentum: decay of the running mean of the logits, for "mean".
            student_temperature: divisor of the student's logits.
            teacher_temperature: divisor of the teacher's logits after the warm-up.
            warmup_teacher_temperature: that at the first step.
            teacher_warmup_percent: length of the linear warm-up in percent of the run.
            freeze_prototypes_percent: first part of the run, in percent, in which the student's
                prototypes do not learn.
            prototypes_per_block: prototypes whose logits are in memory at once; divides their
                number.
        """

        dino_weight: float = 1.0
        ibot_weight: float = 1.0
        koleo_weight: float = 0.1
        centering: str = "sinkhorn"
        sinkhorn_iterations: int = 3
        centre_momentum: float = 0.9
        student_temperature: float = 0.1
        teacher_temperature: float = 0.07
        warmup_teacher_temperature: float = 0.04
        teacher_warmup_percent: float = 0.0
        freeze_prototypes_percent: float = 0.0
        prototypes_per_block: int = 4096

    is_mean_over_examples = False
    reads_ema = True
    config: Config

    def __init__(self, config: Config, context: Context):
        """Checks that the model has heads and that crops fit it.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: an invalid key, a model without heads, local crops or blocks that do not
                fit, or a run without a moving average.
        """
        super().__init__(config, context)
        _check_config(config)
        if not hasattr(context.module, "encode_tokens"):
            raise UserError(
                "config.objective.name='self_distillation' needs a ViT with projection heads, as "
                f"dinov2_s14_pretraining; found {context.architecture_name}"
            )
        if not context.has_ema:
            raise UserError(
                "config.optim.ema_decay=0: the teacher of 'self_distillation' is the moving "
                "average of the parameters; expected a decay, as 0.996"
            )
        assert context.crops is not None
        self.crops: Crops = context.crops
        self.num_local = self.crops.config.num_local
        _check_sizes(config, context)

    @property
    def fields(self) -> tuple[str, ...]:  # type: ignore[override]
        """Fields of a batch."""
        local = (LOCAL,) if self.num_local else ()
        return (GLOBAL, *local, *((MASK,) if self.config.ibot_weight else ()))

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch of crops, see `data.crops`.

        Args:
            model: module of the student.
            batch: fields of `data.crops.crops_transform`, and `PROGRESS`.
            rng: key of the student's stochastic depth.
            *constants: parameters of the teacher.

        Raises:
            UserError: without a key: there is no loss of held-out data.
        """
        if rng is None:
            raise UserError(
                "'self_distillation' has no loss of held-out images, which a teacher and a student "
                "of equal parameters would share: evaluate by knn or probe instead"
            )
        (params,) = constants
        teacher = self.context.model.bind(jax.lax.stop_gradient(params))

        def embed(model: Any, *arrays: Any) -> tuple[jax.Array, ...]:
            *crops, rng = arrays
            return self._embed(model, teacher, dict(zip(self.fields, crops, strict=True)), rng)

        crops = tuple(batch[name] for name in self.fields)
        found = self.context.microbatches.run(embed, model, crops, rng)
        masked = self.crops.max_masked
        views = (NUM_GLOBAL, NUM_GLOBAL + self.num_local, NUM_GLOBAL, masked, masked, masked)
        tokens, student, taught, *patches = (
            constrain(x.reshape(len(x), n, -1), "batch", None, None)
            for x, n in zip(found, views[: len(found)], strict=True)
        )
        step = _Step(model, teacher, self.config, batch[PROGRESS])
        metrics = {
            "teacher_temperature": step.teacher_temperature,
            "dino_loss": step.dino_loss(student, taught),
        }
        loss = self.config.dino_weight * metrics["dino_loss"]
        if self.config.koleo_weight:
            metrics["koleo_loss"] = koleo(tokens[:, 0]) + koleo(tokens[:, 1])
            loss += self.config.koleo_weight * metrics["koleo_loss"]
        if self.config.ibot_weight:
            metrics["ibot_loss"] = step.ibot_loss(*patches)
            loss += self.config.ibot_weight * metrics["ibot_loss"]
        return loss, metrics

    def _embed(
        self, model: Any, teacher: Any, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Everything of a microbatch of b images that the losses compare, each (b, views * width).

        The student's global class tokens; embeddings of the student's class tokens of all crops and
        of the teacher's; embeddings of the student's and the teacher's masked patches, and 1 for
        patches that are masked, 0 for padding.
        """
        inputs, count = self.context.spec.inputs, len(batch[GLOBAL])
        global_rng, local_rng = jax.random.split(rng)
        images = inputs.normalize(batch[GLOBAL].reshape(-1, inputs.packed_size))
        mask = batch.get(MASK)
        by_crop = None if mask is None else mask.reshape(len(images), -1)
        tokens, patches = model.encode_tokens(images, by_crop, rng=global_rng)
        taught, taught_patches = teacher.encode_tokens(images)
        embeddings = [model.head(tokens).reshape(count, -1)]
        if self.num_local:
            small = self.crops.local_inputs(inputs)
            local = small.normalize(batch[LOCAL].reshape(-1, small.packed_size))
            local_tokens = model.encode_image(local, rng=local_rng)
            embeddings.append(model.head(local_tokens).reshape(count, -1))
        found = [tokens, jnp.concatenate(embeddings, axis=1), teacher.head(taught)]
        if mask is not None:
            index, valid = masked_patches(mask.reshape(count, -1), self.crops.max_masked)
            for module, all_patches in ((model, patches), (teacher, taught_patches)):
                by_image = all_patches.reshape(count, -1, all_patches.shape[-1])
                chosen = jnp.take_along_axis(by_image, index[..., None], axis=1)
                found.append(module.patch_head(chosen))
            found.append(valid)
        return tuple(x.reshape(count, -1) for x in found)


@dataclasses.dataclass
class _Step:
    """Losses of one step, between embeddings of student and teacher.

    With the centering "mean" they move the centres, which are stored in the student.
    """

    model: Any
    teacher: Any
    config: SelfDistillation.Config
    progress: jax.Array

    @property
    def teacher_temperature(self) -> jax.Array:
        """Divisor of the teacher's logits, float32 ()."""
        first, last = self.config.warmup_teacher_temperature, self.config.teacher_temperature
        if not self.config.teacher_warmup_percent:
            return jnp.float32(last)
        done = self.progress * 100 / self.config.teacher_warmup_percent
        return first + (last - first) * jnp.minimum(done, 1.0)

    def dino_loss(self, student: jax.Array, taught: jax.Array) -> jax.Array:
        """Mean over pairs of a teacher's crop and another crop.

        Args:
            student: embeddings (B, 2 + N, D) of all crops, the global ones first.
            taught: the teacher's of global crops (B, 2, D).
        """
        num_local = student.shape[1] - NUM_GLOBAL

        def targets(p: jax.Array) -> jax.Array:
            both = jnp.sum(p, axis=1, keepdims=True)
            return jnp.concatenate([p[:, ::-1], jnp.repeat(both, num_local, axis=1)], axis=1)

        heads = self.model.head, self.teacher.head
        losses = self._compare(student, taught, heads, self.model.class_centre, targets=targets)
        return jnp.sum(losses) / (len(losses) * NUM_GLOBAL * (1 + num_local))

    def ibot_loss(self, student: jax.Array, taught: jax.Array, valid: jax.Array) -> jax.Array:
        """Mean over the masked patches of a crop, then over all global crops.

        Args:
            student: embeddings (B, M, D) of the masked patches of an image, which are in one crop.
            taught: the teacher's of the same patches.
            valid: (B, M, 1), 0 for padding.
        """
        heads, weight = (self.model.patch_head, self.teacher.patch_head), valid[..., 0]
        losses = self._compare(student, taught, heads, self.model.patch_centre, weight)
        by_image = jnp.sum(losses * weight, axis=1) / jnp.sum(weight, axis=1)
        return jnp.mean(by_image) / NUM_GLOBAL

    def _compare(
        self,
        student: jax.Array,
        taught: jax.Array,
        heads: tuple[Any, Any],
        centre: Any,
        weight: jax.Array | None = None,
        **options: Any,
    ) -> jax.Array:
        """Cross-entropies of the student's embeddings with assignments of the teacher's."""
        config, (own, theirs) = self.config, (head.prototypes() for head in heads)
        is_frozen = self.progress < config.freeze_prototypes_percent / 100
        own = jnp.where(is_frozen, jax.lax.stop_gradient(own), own)
        own_blocks, blocks = (
            split_prototypes(kernel, min(config.prototypes_per_block, kernel.shape[1]))
            for kernel in (own, theirs)
        )
        assigned: Assignment
        if config.centering == "sinkhorn":
            assigned = sinkhorn(
                taught, blocks, self.teacher_temperature, config.sinkhorn_iterations, weight
            )
        else:
            assigned = centred(taught, blocks, self.teacher_temperature, centre[...])
            centre[...] = jax.lax.stop_gradient(
                moved_centre(centre[...], taught, theirs, config.centre_momentum, weight)
            )
        return cross_entropy(student, own_blocks, config.student_temperature, assigned, **options)


def masked_patches(
    mask: Bool[Array, "batch patches"], most: int
) -> tuple[Int[Array, "batch {most}"], Float[Array, "batch {most}"]]:
    """Finds the masked patches of each image.

    Args:
        mask: True for masked patches.
        most: number of indices per image, at least that of masked patches.

    Returns:
        Indices, those of masked patches first, in order; and 1 for masked patches, 0 for others.
    """
    index = jnp.argsort(~mask, axis=1, stable=True)[:, :most]
    return index, jnp.take_along_axis(mask, index, axis=1).astype(jnp.float32)


def _check_config(config: SelfDistillation.Config) -> None:
    check_name(config.centering, CENTERINGS, "config.objective.centering,")
    for key in ("dino_weight", "ibot_weight", "koleo_weight"):
        check_range(key, getattr(config, key))
    for key in ("teacher_warmup_percent", "freeze_prototypes_percent"):
        check_range(key, getattr(config, key), highest=100)
    check_range("centre_momentum", config.centre_momentum, highest=1)
    for key in ("student_temperature", "teacher_temperature", "warmup_teacher_temperature"):
        check_range(key, getattr(config, key), least=1e-3)
    for key in ("sinkhorn_iterations", "prototypes_per_block"):
        check_range(key, getattr(config, key), least=1)


def _check_sizes(config: SelfDistillation.Config, context: Context) -> None:
    """Refuses blocks that do not divide the prototypes, and crops that patches do not divide."""
    architecture, crops = context.spec.architecture, context.crops
    assert crops is not None
    for count in filter(None, (architecture.prototypes, architecture.patch_prototypes)):
        if count % min(config.prototypes_per_block, count):
            raise UserError(
                f"config.objective.prototypes_per_block={config.prototypes_per_block}: expected a "
                f"divisor of the model's {count} prototypes"
            )
    if crops.config.num_local:
        size = crops.config.local_size
        grid_of((size, size), architecture.image.patch_size, f"config.data.crops.local_size={size}")
