"""Losses of crops and of masked patches, between embeddings of a student and its teacher."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from vit_jax.objectives.self_distillation.assignment import (
    Assignment,
    centred,
    cross_entropy,
    moved_centre,
    sinkhorn,
    split_prototypes,
)

if TYPE_CHECKING:
    from vit_jax.objectives.self_distillation.objective import SelfDistillation


@dataclasses.dataclass
class StepLosses:
    """Losses of one step, between embeddings of student and teacher.

    With the centering "mean" they move the centres, which are stored in the student.
    """

    model: Any
    teacher: Any
    config: "SelfDistillation.Config"
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
            student: embeddings (B, 2 + N, D) of all crops, the global ones first; with a single
                global crop (B, N, D) of the local ones.
            taught: the teacher's of global crops (B, 2, D) or (B, 1, D).
        """
        num_global = taught.shape[1]
        num_compared = num_global if num_global > 1 else 0
        num_local = student.shape[1] - num_compared

        def targets(p: jax.Array) -> jax.Array:
            other, both = p[:, ::-1][:, :num_compared], jnp.sum(p, axis=1, keepdims=True)
            return jnp.concatenate([other, jnp.repeat(both, num_local, axis=1)], axis=1)

        heads = self.model.head, self.teacher.head
        losses = self._compare(student, taught, heads, self.model.class_centre, targets=targets)
        return jnp.sum(losses) / (len(losses) * num_global * (num_global - 1 + num_local))

    def ibot_loss(self, student: jax.Array, taught: jax.Array, valid: jax.Array) -> jax.Array:
        """Mean over the masked patches of a crop, then over images.

        Args:
            student: embeddings (B, M, D) of the masked patches of an image, which are in one crop.
            taught: the teacher's of the same patches.
            valid: (B, M, 1), 0 for padding.
        """
        heads, weight = (self.model.patch_head, self.teacher.patch_head), valid[..., 0]
        losses = self._compare(student, taught, heads, self.model.patch_centre, weight)
        by_image = jnp.sum(losses * weight, axis=1) / jnp.sum(weight, axis=1)
        return jnp.mean(by_image)

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
