"""Set prediction with text queries (Minderer et al. 2022, OWL-ViT, section 3.2; 2023, OWLv2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.models.ops.boxes import box_iou, cxcywh_to_xyxy, generalized_box_iou
from vit_jax.models.ops.matching import match_boxes
from vit_jax.objectives.base import Batch, Context, Metrics, Objective
from vit_jax.objectives.focal import sigmoid_focal_loss

# Outputs of a detector, see "Other kinds of model" in models/README.md.
Outputs = dict[str, jax.Array]


class Owl(Objective):
    """Matches each annotated box with one prediction, and learns its class and its place.

    The loss of the global batch is the sum of the terms below over all images, divided by the
    number of boxes of all images, or by 1 if there are none.

    - Classification: focal sigmoid loss of every query with every prompt of its image. The target
      is 1 for a matched query and the prompt of its box, otherwise 0. The prompts of an image are
      the names in it and sampled negatives; padding has no loss.
    - Boxes: L1 distance and 1 - GIoU of each matched pair, in units of the model's input.
    - Objectness, for models that predict it (OWLv2). Its loss has not been published. Here it is
      the same focal loss, with target 1 for matched queries and 0 for others.

    A query is matched at the lowest total cost, which is the sum of the same weighted terms of
    classification (loss as the box's class minus loss as no object) and boxes. Scenic's recipes
    divide the terms of each image by its own number of boxes instead, and clip gradients per image.

    Metrics: `class_loss`, `l1_loss`, `giou_loss` and `objectness_loss`, unweighted; `accuracy`, the
    fraction of matched queries whose best prompt is that of their box; `iou`, the mean over matched
    pairs; `boxes_per_image`; and `unmatched`, the fraction of boxes for which no query is left.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective; the defaults are those of scenic's recipes.

        Attributes:
            class_weight: weight of the classification loss.
            l1_weight: weight of the L1 distance.
            giou_weight: weight of 1 - GIoU.
            objectness_weight: weight of the objectness loss, for models that predict it.
            focal_alpha: weight of targets 1; targets 0 have 1 - focal_alpha (Lin et al. 2017).
            focal_gamma: exponent of the error by which the focal loss weighs a prediction.
        """

        class_weight: float = 1.0
        l1_weight: float = 1.0
        giou_weight: float = 1.0
        objectness_weight: float = 1.0
        focal_alpha: float = 0.3
        focal_gamma: float = 2.0

    fields = ("image", "tokens", "boxes", "labels")
    is_mean_over_examples = False

    def __init__(self, config: Config, context: Context):
        """Checks that the model detects.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: a model without the method `detect`, inputs that show a part of the image,
                or a weight that is not in its range.
        """
        super().__init__(config, context)
        for field in dataclasses.fields(config):
            highest = 1.0 if field.name == "focal_alpha" else float("inf")
            if not 0 <= (value := getattr(config, field.name)) <= highest:
                raise UserError(
                    f"config.objective.{field.name}={value}: expected a number of at least 0"
                    + (" and at most 1" if highest == 1 else "")
                )
        if not hasattr(context.module, "detect"):
            raise UserError(
                "config.objective.name='owl' learns boxes: it needs a detector, as "
                f"owlvit_base_patch32; found {context.architecture_name}"
            )
        context.spec.inputs.extent(*context.spec.inputs.size)

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch.

        Args:
            model: detector.
            batch: `image`, packed; `tokens` (B, C, T), the prompts of each image, then zeros;
                `boxes` (B, N, 4), cxcywh as fractions of the model's input, padded; `labels`
                (B, N), the prompt of each box, -1 for padding.
            rng: key for the model; None for evaluation mode.
            *constants: not used.
        """
        arrays = (batch["image"], batch["tokens"])
        flat = self.context.microbatches.run(self._predict, model, arrays, rng)
        (images, prompts), names = batch["tokens"].shape[:2], ("boxes", "logits", "objectness")
        queries = flat[0].shape[1] // 4
        shapes = ((images, queries, 4), (images, queries, prompts), (images, queries))
        outputs = {
            name: x.reshape(shape) for name, shape, x in zip(names, shapes, flat, strict=False)
        }
        losses, metrics = detection_losses(
            outputs,
            batch["boxes"],
            batch["labels"],
            batch["tokens"][:, :, 0] != 0,
            self.config,
        )
        loss = sum(getattr(self.config, f"{name}_weight") * x for name, x in losses.items())
        return loss, {**{f"{name}_loss": x for name, x in losses.items()}, **metrics}

    def _predict(
        self, model: Any, images: jax.Array, tokens: jax.Array, rng: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        """Outputs of the model in one row per image: boxes, logits, and objectness if there is."""
        outputs = model(self.context.spec.inputs.normalize(images), tokens, rng=rng)
        names = [name for name in ("boxes", "logits", "objectness") if name in outputs]
        return tuple(outputs[name].reshape(len(images), -1) for name in names)


def detection_losses(
    outputs: Outputs,
    boxes: Float[Array, "batch n 4"],
    labels: Int[Array, "batch n"],
    prompts: Bool[Array, "batch classes"],
    config: Owl.Config,
) -> tuple[Metrics, Metrics]:
    """Losses per box of the matched predictions of a batch.

    Args:
        outputs: `boxes` (B, Q, 4), cxcywh; `logits` (B, Q, C); optionally `objectness` (B, Q).
        boxes: annotated boxes (B, N, 4), cxcywh; anything for padding.
        labels: prompt of each box (B, N), in [0, C); -1 for padding.
        prompts: whether each prompt is one (B, C); False for padding.
        config: keys of the objective.

    Returns:
        Unweighted losses `class`, `l1`, `giou` and, if predicted, `objectness`; and metrics; see
        `Owl`.
    """
    valid = labels >= 0
    outputs = {**outputs, "logits": jnp.where(prompts[:, None], outputs["logits"], 0)}
    query = match_boxes(_cost(jax.lax.stop_gradient(outputs), boxes, labels, config), valid)
    matched = query >= 0
    at = jnp.maximum(query, 0)[..., None]
    found = jnp.take_along_axis(outputs["boxes"], at, axis=1)
    one_hot = jax.nn.one_hot(query, outputs["boxes"].shape[1])  # zeros where nothing is matched
    targets = jnp.einsum("bnq,bnc->bqc", one_hot, jax.nn.one_hot(labels, prompts.shape[1]))

    count = jnp.maximum(jnp.sum(valid), 1)
    pair = cxcywh_to_xyxy(found)[:, :, None], cxcywh_to_xyxy(boxes)[:, :, None]
    l1 = jnp.sum(jnp.abs(found - boxes), axis=-1)
    giou = 1 - jnp.squeeze(generalized_box_iou(*pair), (2, 3))
    focal = _focal(outputs["logits"], targets > 0, config)
    losses = {
        "class": jnp.sum(focal, where=prompts[:, None]) / count,
        "l1": jnp.sum(l1, where=matched) / count,
        "giou": jnp.sum(giou, where=matched) / count,
    }
    if "objectness" in outputs:
        focal = _focal(outputs["objectness"], jnp.any(one_hot, axis=1), config)
        losses["objectness"] = jnp.sum(focal) / count

    pairs = jnp.maximum(jnp.sum(matched), 1)
    best = jnp.argmax(jnp.where(prompts[:, None], outputs["logits"], -jnp.inf), axis=-1)
    right = jnp.take_along_axis(best, at[..., 0], axis=1) == labels
    return losses, {
        "accuracy": jnp.sum(right & matched) / pairs,
        "iou": jnp.sum(jnp.squeeze(box_iou(*pair), (2, 3)), where=matched) / pairs,
        "boxes_per_image": jnp.sum(valid) / len(valid),
        "unmatched": jnp.sum(valid & ~matched) / count,
    }


def _cost(outputs: Outputs, boxes: jax.Array, labels: jax.Array, config: Owl.Config) -> jax.Array:
    """Cost of each box with each query, (B, N, Q)."""
    logits = outputs["logits"]
    positive = jnp.ones(logits.shape, bool)
    difference = _focal(logits, positive, config) - _focal(logits, ~positive, config)
    label = jnp.maximum(labels, 0)[:, None]
    classes = jnp.swapaxes(jnp.take_along_axis(difference, label, axis=2), 1, 2)
    l1 = jnp.sum(jnp.abs(boxes[:, :, None] - outputs["boxes"][:, None]), axis=-1)
    giou = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(outputs["boxes"]))
    return config.class_weight * classes + config.l1_weight * l1 - config.giou_weight * giou


def _focal(logits: jax.Array, targets: jax.Array, config: Owl.Config) -> jax.Array:
    return sigmoid_focal_loss(logits, targets, alpha=config.focal_alpha, gamma=config.focal_gamma)
