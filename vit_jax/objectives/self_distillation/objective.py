"""Self-distillation: DINO's loss of crops, iBOT's of masked patches, KoLeo, and Gram anchoring."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.data.crops import GLOBAL, GRAM, LOCAL, MASK, Crops
from vit_jax.errors import UserError, check_name
from vit_jax.models.definition import Params
from vit_jax.models.partitioning import constrain
from vit_jax.models.sizes import grid_of
from vit_jax.objectives.base import PROGRESS, Batch, Context, Metrics, Objective, check_range
from vit_jax.objectives.self_distillation.gram import gram_loss, resize_patches
from vit_jax.objectives.self_distillation.koleo import koleo
from vit_jax.objectives.self_distillation.step_losses import StepLosses

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
    - KoLeo: of the student's class tokens, before the head, for each of the two global crops;
    - Gram: see `objectives.self_distillation.gram`; the mean over global crops. The Gram teacher is
      `TrainState.anchor`, an earlier state of the teacher.

    With one global crop there are N pairs, and the student sees this crop masked (SigLIP 2, section
    2.3). Models without a class token have their pooled features in its place.

    Metrics: `dino_loss`, `ibot_loss`, `koleo_loss`, `gram_loss`, unweighted, and
    `teacher_temperature`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective.

        Attributes:
            dino_weight: weight of the loss of crops.
            ibot_weight: weight of the loss of masked patches; 0: no patches are masked (DINO).
            koleo_weight: weight of the KoLeo regulariser; 0 for none.
            gram_weight: weight of Gram anchoring; 0 for none, 2 in DINOv3.
            gram_start_percent: part of the run, in percent, before Gram anchoring. The teacher is
                the first Gram teacher then.
            gram_every_percent: interval, in percent of the run, after which the teacher becomes the
                Gram teacher again; in DINOv3 10,000 steps.
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
        gram_weight: float = 0.0
        gram_start_percent: float = 0.0
        gram_every_percent: float = 100.0
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
        self.num_global, self.num_local = self.crops.config.num_global, self.crops.config.num_local
        _check_sizes(config, context)
        self.reads_state = ("ema", "anchor") if config.gram_weight else ("ema",)

    @property
    def fields(self) -> tuple[str, ...]:  # type: ignore[override]
        """Fields of a batch."""
        read = {
            GLOBAL: True,
            LOCAL: self.num_local > 0,
            MASK: self.config.ibot_weight > 0,
            GRAM: self.config.gram_weight > 0 and self.crops.config.gram_size > 0,
        }
        return tuple(field for field, is_read in read.items() if is_read)

    def renews_anchor(self, step: Int[Array, ""], total_steps: int) -> Bool[Array, ""]:
        """Whether the teacher becomes the Gram teacher before a step, see `Objective`."""
        start = math.ceil(self.config.gram_start_percent * total_steps / 100)
        every = max(1, round(self.config.gram_every_percent * total_steps / 100))
        return (step >= start) & ((step - start) % every == 0)

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch of crops, see `data.crops`.

        Args:
            model: module of the student.
            batch: fields of `data.crops.crops_transform`, and `PROGRESS`.
            rng: key of the student's stochastic depth.
            *constants: parameters of the teacher, and of the Gram teacher.

        Raises:
            UserError: without a key: there is no loss of held-out data.
        """
        if rng is None:
            raise UserError(
                "'self_distillation' has no loss of held-out images, which a teacher and a student "
                "of equal parameters would share: evaluate by knn or probe instead"
            )
        teachers = [self.context.model.bind(jax.lax.stop_gradient(each)) for each in constants]
        is_anchored = batch[PROGRESS] >= self.config.gram_start_percent / 100

        def embed(model: Any, *arrays: Any) -> tuple[jax.Array, ...]:
            *crops, rng = arrays
            found = self._embed(
                model, teachers, dict(zip(self.fields, crops, strict=True)), is_anchored, rng
            )
            return tuple(found[name].reshape(len(crops[0]), -1) for name in self.views)

        crops = tuple(batch[name] for name in self.fields)
        outputs = self.context.microbatches.run(embed, model, crops, rng)
        found = {
            name: constrain(x.reshape(len(x), count, -1), "batch", None, None)
            for (name, count), x in zip(self.views.items(), outputs, strict=True)
        }
        step = StepLosses(model, teachers[0], self.config, batch[PROGRESS])
        metrics = {
            "teacher_temperature": step.teacher_temperature,
            "dino_loss": step.dino_loss(found["student"], found["taught"]),
        }
        loss = self.config.dino_weight * metrics["dino_loss"]
        if self.config.koleo_weight:
            tokens = jnp.moveaxis(found["tokens"], 1, 0)
            metrics["koleo_loss"] = sum((koleo(each) for each in tokens), jnp.zeros(()))
            loss += self.config.koleo_weight * metrics["koleo_loss"]
        if self.config.ibot_weight:
            patches = (found[name] for name in ("patches", "taught_patches", "valid"))
            metrics["ibot_loss"] = step.ibot_loss(*patches) / self.num_global
            loss += self.config.ibot_weight * metrics["ibot_loss"]
        if self.config.gram_weight:
            metrics["gram_loss"] = jnp.where(is_anchored, jnp.mean(found["gram"]), 0.0)
            loss += self.config.gram_weight * metrics["gram_loss"]
        return loss, metrics

    @property
    def views(self) -> dict[str, int]:
        """What `_embed` computes of an image, and the number of embeddings or values of each."""
        large, masked = self.num_global, self.crops.max_masked
        views = {"tokens": large, "taught": large}
        # A single global crop has no other one to be compared with.
        views["student"] = self.num_local + (large if large > 1 else 0)
        if self.config.ibot_weight:
            views |= {"patches": masked, "taught_patches": masked, "valid": masked}
        if self.config.gram_weight:
            views["gram"] = large
        return views

    def _embed(
        self,
        model: Any,
        teachers: Sequence[Any],
        batch: Batch,
        is_anchored: jax.Array,
        rng: jax.Array,
    ) -> dict[str, jax.Array]:
        """Everything of a microbatch that the losses compare, see `views`.

        The student's global class tokens; embeddings of the teacher's class tokens and of the
        student's; embeddings of the student's and the teacher's masked patches, and 1 for patches
        that are masked, 0 for padding; losses of Gram anchoring.
        """
        inputs, count = self.context.spec.inputs, len(batch[GLOBAL])
        global_rng, local_rng = jax.random.split(rng)
        images = inputs.normalize(batch[GLOBAL].reshape(-1, inputs.packed_size))
        mask = batch.get(MASK)
        by_crop = None if mask is None else mask.reshape(len(images), -1)
        tokens, patches = model.encode_tokens(images, by_crop, rng=global_rng)
        taught, taught_patches = teachers[0].encode_tokens(images)
        found = {"tokens": tokens, "taught": teachers[0].head(taught)}
        embeddings = [model.head(tokens)] if self.num_global > 1 else []
        if self.num_local:
            small = self.crops.local_inputs(inputs)
            local = small.normalize(batch[LOCAL].reshape(-1, small.packed_size))
            embeddings.append(model.head(model.encode_tokens(local, rng=local_rng)[0]))
        found["student"] = jnp.concatenate([x.reshape(count, -1) for x in embeddings], axis=1)
        if mask is not None:
            index, found["valid"] = masked_patches(mask.reshape(count, -1), self.crops.max_masked)
            modules = ("patches", model, patches), ("taught_patches", teachers[0], taught_patches)
            for name, module, all_patches in modules:
                by_image = all_patches.reshape(count, -1, all_patches.shape[-1])
                chosen = jnp.take_along_axis(by_image, index[..., None], axis=1)
                found[name] = module.patch_head(chosen)
        if self.config.gram_weight:
            anchor = self._anchor(teachers[1], images, batch.get(GRAM), is_anchored)
            found["gram"] = gram_loss(patches, anchor)
        return found

    def _anchor(
        self, teacher: Any, images: jax.Array, large: jax.Array | None, is_anchored: jax.Array
    ) -> jax.Array:
        """Patches of global crops for the student to resemble; zeros before Gram anchoring.

        Args:
            teacher: Gram teacher.
            images: the student's crops.
            large: the Gram teacher's, packed, where it has its own.
            is_anchored: whether Gram anchoring has begun.
        """
        inputs = self.context.spec.inputs
        if large is not None:
            inputs = self.crops.gram_inputs(inputs)
            images = inputs.normalize(large.reshape(-1, inputs.packed_size))
        patch = self.context.spec.architecture.image.patch_size

        def patches() -> jax.Array:
            _, found = teacher.encode_tokens(images)
            return resize_patches(found, grid_of(inputs.size, patch), self.crops.grid)

        shape = jax.eval_shape(patches)
        return jax.lax.cond(is_anchored, patches, lambda: jnp.zeros(shape.shape, shape.dtype))


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
    for key in ("dino_weight", "ibot_weight", "koleo_weight", "gram_weight"):
        check_range(key, getattr(config, key))
    for key in ("teacher_warmup_percent", "freeze_prototypes_percent", "gram_start_percent"):
        check_range(key, getattr(config, key), highest=100)
    check_range("gram_every_percent", config.gram_every_percent, 1e-4, 100)
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
    keys = crops.config
    if keys.num_local + keys.num_global < 2:
        raise UserError(
            "config.data.crops: num_global=1, num_local=0: expected another crop to compare with"
        )
    sizes = {"local_size": keys.local_size if keys.num_local else 0}
    sizes["gram_size"] = keys.gram_size if config.gram_weight else 0
    for key, size in sizes.items():
        if size:
            grid_of((size, size), architecture.image.patch_size, f"config.data.crops.{key}={size}")
