"""Contrastive loss over the global batch: softmax (CLIP) or sigmoid (SigLIP), in three exact forms.

Image i and text j of a batch of N pairs have the logit `z_ij = t x_i . y_j + b`; pair i is the
positive, every other combination a negative.

- `softmax`: symmetric InfoNCE, the mean over pairs of the two cross-entropies, along rows and along
  columns (Radford et al. 2021, https://arxiv.org/abs/2103.00020, sec. 2.3 and fig. 3).
- `sigmoid`: `-sum_ij log sigmoid(+-z_ij) / N`, plus on the diagonal and minus elsewhere
  (Zhai et al. 2023, https://arxiv.org/abs/2303.15343, sec. 3.2).

The forms compute the same number and differ in what they hold and send, per device, when the batch
is split over P devices with L = N / P pairs each:

| form     | memory beyond inputs and gradients | sent                                          |
|----------|------------------------------------|-----------------------------------------------|
| gathered | L x N logits, N x D texts          | one all-gather, one reduction of the gradient |
| ring     | L x L logits, a few L x D blocks   | P hops of an L x D block, each way            |
| tiled    | tile x tile logits, as for ring    | as for ring                                   |

`gathered` is the fastest while its logits fit, `ring` is for batches of some hundred thousand and
`tiled` for a million and more. The last two are in `contrastive_ring.py`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import check_name
from vit_jax.objectives.contrastive import ring as contrastive_ring

LOSSES = ("softmax", "sigmoid")
FORMS = ("gathered", "ring", "tiled")


def contrastive_loss(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    *,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float | None = None,
    loss: str = "softmax",
    form: str = "gathered",
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = (),
    tile_size: int = 1024,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Contrastive loss of a batch of image-text pairs, a function on global arrays.

    Differentiable once, in reverse mode, in both embeddings, the scale and the bias. Statistics and
    sums are float32 whatever the input. Two bfloat16 inputs are multiplied as bfloat16, which is
    fast on accelerators; anything else is multiplied as float32 at the highest precision.

    Args:
        image_embeddings: (N, D), rows of unit length; row i belongs to row i of the texts.
        text_embeddings: (N, D), rows of unit length.
        logit_scale: scalar t that multiplies the cosine: the inverse temperature, not its log.
        logit_bias: scalar b added to every logit. `sigmoid` needs one. In `softmax` it cancels, so
            it is not used there and its gradient is exactly zero.
        loss: `softmax` or `sigmoid`.
        form: `gathered`, `ring` or `tiled`: the same loss, different memory (see the module).
        mesh: the mesh that the batch is sharded over, its axes of type Auto; None for no mesh.
        batch_axes: the axes of `mesh` that split the batch. The embeddings are taken to be
            replicated over the others, each replica doing the same work; naming such an axis here
            as well (when N allows) shares the work out.
        tile_size: for `tiled`, the largest side of a tile, in pairs. It need not divide N / P.

    Returns:
        The loss, a float32 scalar, and metrics without gradients: for `softmax`, the accuracies
        `image_to_text_accuracy` and `text_to_image_accuracy` in [0, 1] of retrieval within the
        batch. A tie counts as a miss, so towers that collapse score 0. For `sigmoid` the accuracies
        would not come free, so there are none.

    Raises:
        ValueError: an unknown loss, form or mesh axis; embeddings that are not two equal (N, D)
            float arrays; a scale or bias that is not a scalar; `sigmoid` without a bias; N not
            divisible by the number of shards; a tile smaller than one pair.
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
        return _gathered_loss(image, text, scale, bias, loss, mesh, batch_axes)
    ring = contrastive_ring.Ring(loss, mesh, batch_axes, tile_size if form == "tiled" else None)
    return contrastive_ring.ring_loss(ring, image, text, scale, bias)


def _gathered_loss(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    loss: str,
    mesh: Mesh | None,
    batch_axes: tuple[str, ...],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss from the N x N matrix of logits, rows split over the batch axes."""

    def constrain(x: jax.Array, *spec: tuple[str, ...] | None) -> jax.Array:
        if mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    # Said in full, since propagation alone may as well gather the images, or the logits.
    image = constrain(image, batch_axes, None)
    text = constrain(text, None, None)
    # A column behind a barrier for the sake of its gradient: see row_sum_total.
    biases = jax.lax.optimization_barrier(jnp.broadcast_to(bias, (image.shape[0], 1)))
    logits = constrain(contrastive_ring.pair_logits(image, text, scale, biases), batch_axes, None)

    # A mask, not jnp.diagonal: a gather along a sharded matrix makes XLA collect all of it.
    diagonal = jnp.eye(logits.shape[0], dtype=bool)
    if loss == "sigmoid":
        pairs = jax.nn.softplus(jnp.where(diagonal, -logits, logits))
        return contrastive_ring.row_sum_total(pairs) / logits.shape[0], {}

    positive = jnp.where(diagonal, logits, 0).sum(1)
    by_row, row_hit = _cross_entropy(logits, diagonal, positive, axis=1)
    by_column, column_hit = _cross_entropy(logits, diagonal, positive, axis=0)
    metrics = {"image_to_text_accuracy": row_hit, "text_to_image_accuracy": column_hit}
    return (by_row + by_column) / 2, metrics


def _cross_entropy(
    logits: jax.Array, diagonal: jax.Array, positive: jax.Array, axis: int
) -> tuple[jax.Array, jax.Array]:
    """Mean over pairs of `logsumexp(logits) - positive` along an axis, and the fraction of hits."""
    # Subtracting the maximum from the positive before the logarithm is added keeps a small loss
    # accurate: two numbers of the size of the scale cancel exactly where the positive is largest.
    maximum = jax.lax.stop_gradient(logits.max(axis, keepdims=True))
    log_total = jnp.log(jnp.exp(logits - maximum).sum(axis))
    loss = (maximum.squeeze(axis) - positive) + log_total
    hardest_negative = jnp.where(diagonal, jnp.finfo(jnp.float32).min, logits).max(axis)
    hit = jax.lax.stop_gradient(positive > hardest_negative)
    return loss.mean(), hit.mean(dtype=jnp.float32)


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
