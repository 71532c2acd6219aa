"""Non-maximum suppression."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vit_jax.models.ops.boxes import box_iou


def nms(
    boxes: Float[Array, "*batch n 4"],
    scores: Float[Array, "*batch n"],
    iou_threshold: float,
    *,
    labels: Int[Array, "*batch n"] | None = None,
) -> Bool[Array, "*batch n"]:
    """Greedy non-maximum suppression.

    A box is kept if no kept box of a higher score overlaps it. Of equal scores, the first precedes.
    Padding with scores of -inf suppresses nothing except other padding.

    All boxes are decided at once, and again until nothing changes: after k rounds the k boxes of
    the highest scores are final, and most images need few rounds.

    Args:
        boxes: (..., N, 4), xyxy.
        scores: (..., N).
        iou_threshold: intersection over union above which the lower score is suppressed.
        labels: class of each box (..., N); boxes of different classes do not suppress each other.
            None: all boxes compete.

    Returns:
        Whether each box is kept, (..., N), in the order of the boxes.
    """
    index = jnp.arange(boxes.shape[-2])
    mine, other = scores[..., :, None], scores[..., None, :]
    suppresses = (other > mine) | ((other == mine) & (index < index[:, None]))
    suppresses &= box_iou(boxes, boxes) > iou_threshold
    if labels is not None:
        suppresses &= labels[..., :, None] == labels[..., None, :]

    def decide(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keep, _ = state
        new = ~jnp.any(suppresses & keep[..., None, :], axis=-1)
        return new, jnp.any(new != keep)

    every = jnp.ones(scores.shape, bool)
    return jax.lax.while_loop(lambda state: state[1], decide, (every, jnp.bool_(True)))[0]
