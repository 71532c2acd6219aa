"""The patch whose class embedding represents a query image (Minderer et al. 2022, section 4.4).

The rules are those of transformers' OwlViTForObjectDetection and Owlv2ForObjectDetection.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vit_jax.models.ops.boxes import box_iou, cxcywh_to_xyxy, generalized_box_iou

# Fraction of the best overlap that a candidate has.
_MIN_OVERLAP = 0.8


def query_by_objectness(objectness: Float[Array, "batch boxes"]) -> Int[Array, " batch"]:
    """Returns the index of the patch of the highest objectness (OWLv2).

    Args:
        objectness: logits (B, Q).
    """
    return jnp.argmax(objectness, axis=-1)


def query_by_overlap(
    boxes: Float[Array, "batch boxes 4"], embeddings: Float[Array, "batch boxes embed"]
) -> Int[Array, " batch"]:
    """Returns the index of a patch whose box covers the image (OWL-ViT).

    Of the boxes whose overlap with the whole image is at least 0.8 of the largest, it is the one
    whose class embedding is least similar to the mean of all. The overlap is the IoU, or the
    generalized IoU if no box overlaps the image.

    Args:
        boxes: cxcywh (B, Q, 4), relative to the image.
        embeddings: class embeddings (B, Q, E).
    """
    corners = cxcywh_to_xyxy(boxes)
    whole = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0, 1.0]), (len(boxes), 1, 4))
    overlaps = box_iou(corners, whole)[..., 0]
    apart = jnp.all(overlaps == 0, axis=-1, keepdims=True)
    overlaps = jnp.where(apart, generalized_box_iou(corners, whole)[..., 0], overlaps)
    best = jnp.max(overlaps, axis=-1, keepdims=True)
    # 0.8 of a negative overlap is larger than the overlap itself.
    candidates = overlaps >= jnp.minimum(best, _MIN_OVERLAP * best)
    similarity = jnp.einsum("bqe,be->bq", embeddings, jnp.mean(embeddings, axis=1))
    return jnp.argmin(jnp.where(candidates, similarity, jnp.inf), axis=-1)
