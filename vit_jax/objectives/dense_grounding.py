"""Alignment of all positions with the phrases of captions (Li et al. 2022, GLIP, section 3.1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.models.glip.anchors import decode_boxes
from vit_jax.models.glip.model import Predictions
from vit_jax.models.ops.boxes import box_iou, cxcywh_to_xyxy, generalized_box_iou
from vit_jax.objectives.atss import assign_boxes, centerness
from vit_jax.objectives.base import Batch, Context, Metrics, Objective
from vit_jax.objectives.focal import BoxConfig


class DenseGrounding(Objective):
    """Assigns each annotated box to positions, and learns its phrase, its place, and centerness.

    Positions are assigned by ATSS, see `atss.assign_boxes`. The loss is the sum of three terms over
    all images, as in the authors' code (`maskrcnn_benchmark/modeling/rpn/loss.py`):

    - Alignment: focal sigmoid loss of every position with every token of its caption, per assigned
      position. The target is 1 for an assigned position and the tokens of its box's phrase.
      Padding has no loss.
    - Boxes: 1 - GIoU of the assigned positions, a mean weighted by their centerness.
    - Centerness: cross-entropy, per assigned position.

    Metrics: the three terms, unweighted, as `class_loss`, `giou_loss` and `centerness_loss`;
    `iou`, the mean over assigned positions; `positions_per_box`; `boxes_per_image`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BoxConfig):
        """Keys of the objective; the defaults are those of the authors.

        Attributes:
            centerness_weight: weight of the centerness.
            candidates: positions of each level that a box may be assigned to.
        """

        giou_weight: float = 2.0
        centerness_weight: float = 1.0
        candidates: int = 9

    fields = ("image", "sizes", "tokens", "boxes", "positive_map")
    is_mean_over_examples = False

    def __init__(self, config: Config, context: Context):
        """Checks that each position of the model predicts a box.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: another kind of model, or a number that is not in its range.
        """
        super().__init__(config, context)
        config.check()
        if not hasattr(context.module, "predicts_centerness"):
            raise UserError(
                "config.objective.name='dense_grounding' needs a model that predicts a box and its "
                f"centerness at each position, as glip_tiny; found {context.architecture_name}"
            )
        context.spec.inputs.extent(*context.spec.inputs.size)

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch.

        Args:
            model: detector that reads a caption per image.
            batch: `image`, packed; `sizes` (B, 2), height and width of the image without its
                padding, px; `tokens` (B, T), a caption, then zeros; `boxes` (B, N, 4), cxcywh as
                fractions of the image, padded; `positive_map` (B, N, T), the tokens of the phrase
                of each box, none for padding.
            rng: key for the model; None for evaluation mode.
            *constants: not used.
        """
        arrays = tuple(batch[name] for name in self.fields)
        (sums,) = self.context.microbatches.run(self._sums, model, arrays, rng)
        alignment, giou, center, positives, weights, iou, boxes = jnp.sum(sums, axis=0)
        count = jnp.maximum(positives, 1)
        # The weights of no position add up to zero, as do their losses.
        giou = giou / jnp.where(weights > 0, weights, 1)
        losses = {"class": alignment / count, "giou": giou, "centerness": center / count}
        return self.config.total(losses), {
            **{f"{name}_loss": x for name, x in losses.items()},
            "iou": iou / count,
            "positions_per_box": positives / jnp.maximum(boxes, 1),
            "boxes_per_image": boxes / len(sums),
        }

    def _sums(
        self,
        model: Any,
        images: jax.Array,
        sizes: jax.Array,
        tokens: jax.Array,
        boxes: jax.Array,
        positive_map: jax.Array,
        rng: jax.Array | None,
    ) -> tuple[Float[Array, "batch 7"]]:
        found = model.predict(self.context.spec.inputs.normalize(images), tokens, rng=rng)
        # Corners in pixels of the input; those of maskrcnn-benchmark are inclusive.
        corners = cxcywh_to_xyxy(boxes) * jnp.tile(sizes[:, None, ::-1], 2)
        corners = corners - jnp.asarray([0, 0, 1, 1], corners.dtype)
        return (position_losses(found, corners, positive_map, tokens > 0, self.config),)


def position_losses(
    found: Predictions,
    boxes: Float[Array, "batch n 4"],
    positive_map: Bool[Array, "batch n length"],
    tokens: Bool[Array, "batch length"],
    config: DenseGrounding.Config,
) -> Float[Array, "batch 7"]:
    """Assigns positions, and sums up the losses of each image.

    Args:
        found: predictions of the model.
        boxes: x0, y0, x1, y1 with inclusive corners, px (B, N, 4); anything for padding.
        positive_map: tokens of the phrase of each box (B, N, T), none for padding.
        tokens: whether each token exists (B, T).
        config: keys of the objective.

    Returns:
        Sums of the alignment, of 1 - GIoU weighted by the centerness, of the cross-entropy of the
        centerness, number of assigned positions, sums of their centerness and of their IoU, and
        number of boxes.
    """
    valid = jnp.any(positive_map, axis=-1)
    anchors, counts = found.anchors, [x.shape[1] * x.shape[2] for x in found.levels]
    assign = jax.vmap(lambda b, v: assign_boxes(anchors, counts, b, v, config.candidates))
    assigned = assign(boxes, valid)
    positive, at = assigned >= 0, jnp.maximum(assigned, 0)[..., None]
    targets = jnp.take_along_axis(positive_map, at, axis=1) & positive[..., None]
    focal = config.focal(found.logits, targets)
    # Where nothing is assigned, the anchor stands for the box, so that all numbers are finite.
    box = jnp.take_along_axis(boxes, at, axis=1)
    box = jnp.where(positive[..., None], box, anchors)
    weight = jnp.where(positive, centerness(anchors, box), 0)
    predicted = decode_boxes(found.deltas, anchors)
    low, high = predicted[..., :2], predicted[..., 2:]
    predicted = jnp.concatenate([low, jnp.maximum(low, high)], axis=-1)
    pair = predicted[:, :, None], box[:, :, None]
    giou, iou = (jnp.squeeze(f(*pair), (2, 3)) for f in (generalized_box_iou, box_iou))
    signed = weight * found.centerness - jax.nn.softplus(found.centerness)
    sums = [
        jnp.sum(focal, axis=(1, 2), where=tokens[:, None]),
        jnp.sum(weight * (1 - giou), axis=1),
        -jnp.sum(signed, axis=1, where=positive),
        jnp.sum(positive, axis=1),
        jnp.sum(weight, axis=1),
        jnp.sum(iou, axis=1, where=positive),
        jnp.sum(valid, axis=1),
    ]
    return jnp.stack([x.astype(jnp.float32) for x in sums], axis=1)
