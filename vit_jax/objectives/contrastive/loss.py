"""Contrastive loss over the global batch: softmax (CLIP) or sigmoid (SigLIP), in three exact forms.

Image i and text j of a batch of N pairs have the logit `z_ij = t x_i . y_j + b`; pair i is the
positive, every other combination a negative.

- `softmax`: symmetric InfoNCE, the mean over pairs of the two cross-entropies, along rows and along
  columns (Radford et al. 2021, https://arxiv.org/abs/2103.00020, sec. 2.3 and fig. 3).
- `sigmoid`: `-sum_ij log sigmoid(+-z_ij) / N`, plus on the diagonal and minus elsewhere
  (Zhai et al. 2023, https://arxiv.org/abs/2303.15343, sec. 3.2).

The forms compute the same number. They differ in the memory and the traffic per device, for a batch
that is split over P devices with L = N / P pairs each:

| form     | memory beyond inputs and gradients | sent                                          |
|----------|------------------------------------|-----------------------------------------------|
| gathered | L x N logits, N x D texts          | one all-gather, one reduction of the gradient |
| ring     | L x L logits, a few L x D blocks   | P hops of an L x D block, each way            |
| tiled    | tile x tile logits, as for ring    | as for ring                                   |

`gathered` is the fastest while its logits fit, `ring` suits batches of some hundred thousand pairs
and `tiled` a million and more. All three share the arithmetic of `tile_losses.py`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vit_jax.errors import check_name
from vit_jax.objectives.contrastive.gathered import gathered_loss
from vit_jax.objectives.contrastive.ring import RingLoss, ring_loss
from vit_jax.parallel.ring import DeviceRing

LOSSES = ("softmax", "sigmoid")
FORMS = ("gathered", "ring", "tiled")


def contrastive_loss(
    image_embeddings: Float[Array, "batch width"],
    text_embeddings: Float[Array, "batch width"],
    *,
    logit_scale: Float[Array, ""] | float,
    logit_bias: Float[Array, ""] | float | None = None,
    loss: str = "softmax",
    form: str = "gathered",
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = (),
    tile_size: int = 1024,
) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
    """Contrastive loss of a batch of image-text pairs, a function on global arrays.

    Differentiable once, in reverse mode, in both embeddings, the scale and the bias. Statistics and
    sums are float32 for any dtype of the embeddings. Two bfloat16 inputs are multiplied as
    bfloat16, which is fast on accelerators; all others are multiplied as float32 at the highest
    precision.

    Args:
        image_embeddings: rows of unit length; row i belongs to row i of the texts.
        text_embeddings: rows of unit length.
        logit_scale: factor t of the cosines: the inverse temperature, not its logarithm.
        logit_bias: bias b, added to every logit. "sigmoid" needs one. In "softmax" it cancels, so
            it is not used there and its gradient is exactly zero.
        loss: "softmax" or "sigmoid".
        form: "gathered", "ring" or "tiled": the same loss with different memory, see the module.
        mesh: mesh that the batch is sharded over, its axes of type Auto; None: no mesh.
        batch_axes: axes of `mesh` that split the batch. Embeddings are replicated over the other
            axes, along which devices repeat the work. The ring and tiled forms divide the work if
            such an axis is named here as well and the batch allows it.
        tile_size: largest side of a tile in pairs, for "tiled". It need not divide N / P.

    Returns:
        The loss, and metrics without gradients: for "softmax", the accuracies
        `image_to_text_accuracy` and `text_to_image_accuracy` in [0, 1] of retrieval within the
        batch. A tie counts as a miss, so collapsed embeddings score 0. For "sigmoid", whose
        computation does not include the accuracies, there are none.

    Raises:
        ValueError: an unknown loss, form or mesh axis; embeddings that are not two (N, D) float
            arrays of equal shape; a scale or bias that is not a scalar; "sigmoid" without a bias;
            N not divisible by the number of shards; a tile smaller than one pair.
    """
    batch_axes = tuple(batch_axes)
    check_name(loss, LOSSES, "loss")
    check_name(form, FORMS, "form")
    _check_arrays(image_embeddings, text_embeddings, logit_scale, logit_bias, loss)
    _check_mesh(image_embeddings.shape[0], mesh, batch_axes)
    if tile_size < 1:
        raise ValueError(f"tile_size: expected at least 1, found {tile_size}")

    both_bfloat16 = image_embeddings.dtype == text_embeddings.dtype == jnp.bfloat16
    operand = jnp.bfloat16 if both_bfloat16 else jnp.float32
    image, text = image_embeddings.astype(operand), text_embeddings.astype(operand)
    scale = jnp.asarray(logit_scale, jnp.float32)
    bias = jnp.asarray(logit_bias if loss == "sigmoid" else 0, jnp.float32)
    if form == "gathered":
        return gathered_loss(image, text, scale, bias, loss=loss, mesh=mesh, batch_axes=batch_axes)
    ring = DeviceRing(mesh, batch_axes)
    static = RingLoss(loss, ring, tile_size if form == "tiled" else None)
    return ring_loss(static, image, text, scale, bias)


def _check_arrays(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float | None,
    loss: str,
) -> None:
    if image.ndim != 2 or image.shape != text.shape or 0 in image.shape:
        raise ValueError(
            "embeddings: expected images and texts of one shape (N, D), "
            f"found images {image.shape} and texts {text.shape}"
        )
    for name, x in (("image_embeddings", image), ("text_embeddings", text)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name}: expected a floating-point dtype, found {x.dtype}")
    if loss == "sigmoid" and bias is None:
        raise ValueError("logit_bias: expected a scalar for the sigmoid loss, found None")
    for name, value in (("logit_scale", scale), ("logit_bias", bias)):
        if value is not None and jnp.shape(value) != ():
            raise ValueError(f"{name}: expected a scalar, found shape {jnp.shape(value)}")


def _check_mesh(batch: int, mesh: Mesh | None, batch_axes: tuple[str, ...]) -> None:
    if mesh is None:
        if batch_axes:
            raise ValueError(f"mesh: expected one with axes {batch_axes}, found None")
        return
    for axis in batch_axes:
        check_name(axis, mesh.axis_names, "axis in batch_axes,")
    if len(set(batch_axes)) != len(batch_axes):
        raise ValueError(f"batch_axes: expected each axis once, found {batch_axes}")
    shards = math.prod(mesh.shape[axis] for axis in batch_axes)
    if batch % shards:
        raise ValueError(
            f"batch: expected a multiple of the {shards} shards over {batch_axes}, found {batch}"
        )
