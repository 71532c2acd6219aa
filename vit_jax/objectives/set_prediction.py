"""Set prediction: boxes matched with predictions, and their losses (Carion et al. 2020, DETR).

Each box has one or several of an image's words: a class prompt of OWL, or the tokens of a phrase in
a caption (Li et al. 2022, GLIP).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models.ops.boxes import box_iou, cxcywh_to_xyxy, generalized_box_iou
from vit_jax.models.ops.matching import match_boxes
from vit_jax.objectives.base import Metrics
from vit_jax.objectives.focal import BoxConfig

# Outputs of a detector, see "Other kinds of model" in models/README.md.
Outputs = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetConfig(BoxConfig):
    """Keys of objectives that match boxes with predictions.

    Attributes:
        l1_weight: weight of the L1 distance.
        class_cost: weight of classification in the matching. The other terms have the same weights
            there as in the loss.
    """

    l1_weight: float = 1.0
    class_cost: float = 1.0


class Sums(NamedTuple):
    """Sums over the boxes and queries of each image.

    Attributes:
        losses: unweighted losses by name.
        boxes: number of boxes.
        matched: number of boxes with a query.
        right: number of matched queries whose best word is one of their box.
        iou: intersection over union of matched pairs.
    """

    losses: dict[str, Float[Array, "*batch"]]
    boxes: Int[Array, "*batch"]
    matched: Int[Array, "*batch"]
    right: Int[Array, "*batch"]
    iou: Float[Array, "*batch"]

    def means(self) -> tuple[Metrics, Metrics]:
        """Computes losses per box of the whole batch, and metrics.

        Returns:
            Losses by name; and `accuracy`, the fraction of matched queries that are right, `iou`,
            their mean, `boxes_per_image` and `unmatched`, the fraction of boxes without a query.
        """
        count = jnp.maximum(jnp.sum(self.boxes), 1)
        pairs = jnp.maximum(jnp.sum(self.matched), 1)
        return {name: jnp.sum(x) / count for name, x in self.losses.items()}, {
            "accuracy": jnp.sum(self.right) / pairs,
            "iou": jnp.sum(self.iou) / pairs,
            "boxes_per_image": jnp.mean(self.boxes),
            "unmatched": jnp.sum(self.boxes - self.matched) / count,
        }


def set_losses(
    outputs: Outputs,
    boxes: Float[Array, "batch n 4"],
    targets: Bool[Array, "batch n words"],
    words: Bool[Array, "batch words"],
    config: SetConfig,
) -> Sums:
    """Matches the boxes of each image with queries, and sums up the losses.

    A query is matched at the lowest total cost: that of the words of the box (the mean of their
    losses as such minus their losses as others) and of the box, L1 distance and -GIoU.

    Args:
        outputs: `boxes` (B, Q, 4), cxcywh; `logits` (B, Q, C) of the words; optionally `objectness`
            (B, Q).
        boxes: annotated boxes (B, N, 4), cxcywh; anything for padding.
        targets: whether each word is one of each box (B, N, C); no word for padding.
        words: whether each word exists (B, C); others have no loss.
        config: keys of the objective.

    Returns:
        Sums with the losses `class`, `l1`, `giou` and, if predicted, `objectness`.
    """
    valid = jnp.any(targets, axis=-1)
    logits = jnp.where(words[:, None], outputs["logits"], 0)
    cost = _cost(*jax.lax.stop_gradient((outputs["boxes"], logits)), boxes, targets, config)
    query = match_boxes(cost, valid)
    matched = query >= 0
    at = jnp.maximum(query, 0)[..., None]
    found = jnp.take_along_axis(outputs["boxes"], at, axis=1)
    pair = cxcywh_to_xyxy(found)[:, :, None], cxcywh_to_xyxy(boxes)[:, :, None]
    l1 = jnp.sum(jnp.abs(found - boxes), axis=-1)
    giou = 1 - jnp.squeeze(generalized_box_iou(*pair), (2, 3))
    one_hot = jax.nn.one_hot(query, logits.shape[1], dtype=jnp.bfloat16)  # 0 without a match
    # Words of the box of each query; sums of zeros and ones are exact in bfloat16.
    wanted = jnp.einsum("bnq,bnc->bqc", one_hot, targets.astype(jnp.bfloat16)) > 0
    losses = {
        "class": jnp.sum(config.focal(logits, wanted), axis=(1, 2), where=words[:, None]),
        "l1": jnp.sum(l1, axis=1, where=matched),
        "giou": jnp.sum(giou, axis=1, where=matched),
    }
    if "objectness" in outputs:
        objectness = config.focal(outputs["objectness"], jnp.any(wanted, axis=2))
        losses["objectness"] = jnp.sum(objectness, axis=1)
    best = jnp.argmax(jnp.where(words[:, None], logits, -jnp.inf), axis=-1)
    best = jnp.take_along_axis(best, at[..., 0], axis=1)
    right = jnp.take_along_axis(targets, best[..., None], axis=2)[..., 0]
    return Sums(
        losses=losses,
        boxes=jnp.sum(valid, axis=1),
        matched=jnp.sum(matched, axis=1),
        right=jnp.sum(right & matched, axis=1),
        iou=jnp.sum(jnp.squeeze(box_iou(*pair), (2, 3)), axis=1, where=matched),
    )


def _cost(
    found: jax.Array, logits: jax.Array, boxes: jax.Array, targets: jax.Array, config: SetConfig
) -> jax.Array:
    """Cost of each box with each query, (B, N, Q)."""
    positive = jnp.ones(logits.shape, bool)
    difference = config.focal(logits, positive) - config.focal(logits, ~positive)
    share = targets / jnp.maximum(jnp.sum(targets, axis=-1, keepdims=True), 1)
    highest = jax.lax.Precision.HIGHEST
    classes = jnp.einsum("bqc,bnc->bnq", difference, share, precision=highest)
    l1 = jnp.sum(jnp.abs(boxes[:, :, None] - found[:, None]), axis=-1)
    giou = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(found))
    return config.class_cost * classes + config.l1_weight * l1 - config.giou_weight * giou
