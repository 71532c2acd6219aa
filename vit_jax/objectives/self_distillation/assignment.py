"""Assignment of embeddings to prototypes, and the cross-entropy between two assignments.

Token t with the embedding x_t has the logit z_tk = x_t . w_k of prototype k. A teacher at
temperature T assigns it to prototypes with the probabilities

    p_tk = exp(z_tk / T + rows_t + columns_k).

`columns` keep the teacher from assigning all tokens to one prototype, `rows` make p_t sum to one.
They are the difference between the two published ways:

- `centred`: columns = -centre / T, with a running mean of the logits (Caron et al. 2021, DINO,
  https://arxiv.org/abs/2104.14294, section 3.1);
- `sinkhorn`: columns that give every prototype the same mass, by the iterations of Sinkhorn and
  Knopp (Caron et al. 2020, SwAV, https://arxiv.org/abs/2006.09882, section 3.1), as in DINOv2.

An assignment has no gradient. Arrays are global: sums over tokens are those of all devices, so that
the result does not depend on the mesh. A matrix of tokens x prototypes never exists as a whole.
Prototypes are scanned in blocks, and the logits of a block are computed anew in each pass: with
235,000 masked tokens and 131,072 prototypes, one float32 matrix would take 115 GiB.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from vit_jax.models.partitioning import constrain
from vit_jax.objectives.contrastive.logits import product

Tokens = Float[Array, "*tokens width"]
# Prototypes in blocks.
Blocks = Float[Array, "blocks width block"]


@struct.dataclass
class Assignment:
    """Probabilities of prototypes for each token, in factors.

    Attributes:
        tokens: embeddings (*T, D).
        blocks: prototypes (n, D, K / n).
        temperature: divisor of the logits, float32 ().
        rows: (*T,), float32.
        columns: (n, K / n), float32.
    """

    tokens: jax.Array
    blocks: jax.Array
    temperature: jax.Array
    rows: jax.Array
    columns: jax.Array


def split_prototypes(kernel: Float[Array, "width prototypes"], size: int) -> Blocks:
    """Cuts prototypes into blocks.

    Args:
        kernel: prototypes (D, K).
        size: prototypes per block; divides K.
    """
    width, count = kernel.shape
    blocks = jnp.moveaxis(kernel.reshape(width, count // size, size), 1, 0)
    # One gather before the scan, instead of one per block.
    return constrain(blocks, None, None, None)


def centred(
    tokens: Tokens,
    blocks: Blocks,
    temperature: Float[Array, ""],
    centre: Float[Array, " prototypes"],
) -> Assignment:
    """Assigns tokens by a softmax of centred logits (DINO).

    Args:
        tokens: embeddings.
        blocks: prototypes.
        temperature: divisor of the logits.
        centre: running mean of the logits.
    """
    tokens, blocks, centre = jax.lax.stop_gradient((tokens, blocks, centre))
    columns = (-centre / temperature).reshape(len(blocks), -1)
    return _assign(tokens, blocks, temperature, lambda logits, i: columns[i])


def sinkhorn(
    tokens: Tokens,
    blocks: Blocks,
    temperature: Float[Array, ""],
    iterations: int,
    weight: Float[Array, "*tokens"] | None = None,
) -> Assignment:
    """Assigns tokens with equal mass per prototype (SwAV, DINOv2).

    The published code alternates between dividing exp(z / T) by the sums of its columns and of its
    rows. Here the same factors are accumulated as logarithms, which cannot overflow.

    Args:
        tokens: embeddings of the global batch.
        blocks: prototypes.
        temperature: divisor of the logits.
        iterations: number of pairs of divisions; 3 in both papers.
        weight: 1 for tokens, 0 for padding, at least one of them 1; None for no padding.
    """
    tokens, blocks = jax.lax.stop_gradient((tokens, blocks))
    mask = 0.0 if weight is None else jnp.log(weight)[..., None]
    axes = tuple(range(tokens.ndim - 1))

    def balanced(rows: jax.Array) -> Assignment:
        def column(logits: jax.Array, i: jax.Array) -> jax.Array:
            return -jax.nn.logsumexp(logits + rows[..., None] + mask, axis=axes)

        return _assign(tokens, blocks, temperature, column)

    zeros = jnp.zeros(tokens.shape[:-1]), jnp.zeros((len(blocks), blocks.shape[-1]))
    start = Assignment(tokens, blocks, temperature, *zeros)
    return jax.lax.fori_loop(0, iterations, lambda _, found: balanced(found.rows), start)


def moved_centre(
    centre: Float[Array, " prototypes"],
    tokens: Tokens,
    kernel: Float[Array, "width prototypes"],
    momentum: float,
    weight: Float[Array, "*tokens"] | None = None,
) -> Float[Array, " prototypes"]:
    """Moves the running mean of the logits towards that of a batch (DINO, equation 4).

    Args:
        centre: running mean.
        tokens: embeddings of the global batch.
        kernel: prototypes.
        momentum: weight of the running mean; 0.9 in DINO.
        weight: see `sinkhorn`.
    """
    weight = jnp.ones(tokens.shape[:-1], jnp.float32) if weight is None else weight
    axes = tuple(range(tokens.ndim - 1))
    # Logits are linear in the embedding: their mean is the logit of the mean.
    total = jnp.sum(tokens.astype(jnp.float32) * weight[..., None], axis=axes)
    mean = product("d,dk->k", total / jnp.sum(weight), kernel.astype(jnp.float32))
    return momentum * centre + (1 - momentum) * mean


def cross_entropy(
    student: Float[Array, "*views width"],
    blocks: Blocks,
    temperature: float,
    teacher: Assignment,
    targets: Callable[[jax.Array], jax.Array] = lambda p: p,
) -> Float[Array, "*views"]:
    """Cross-entropy -sum_k p_k log q_k of the student's distribution q with a teacher's p.

    Differentiable in `student` and `blocks`. The backward pass recomputes the logits of a block.

    Args:
        student: embeddings.
        blocks: the student's prototypes, cut as those of the teacher.
        temperature: divisor of the student's logits.
        teacher: assignment of the teacher's tokens.
        targets: maps probabilities (*T, K / n) to sums of probabilities (*views, K / n), where the
            views of the student differ from the tokens of the teacher.

    Returns:
        float32 (*views,): the sum of the cross-entropies with the targets of a view.
    """

    @jax.checkpoint
    def step(totals: tuple, block: tuple) -> tuple[tuple, None]:
        norm, mass, matched = totals
        own, theirs, column = block
        logits = scores(student, own) / temperature
        taught = scores(teacher.tokens, theirs) / teacher.temperature
        target = targets(jnp.exp(taught + teacher.rows[..., None] + column))
        return (
            jnp.logaddexp(norm, jax.nn.logsumexp(logits, axis=-1)),
            mass + jnp.sum(target, axis=-1),
            matched + jnp.sum(target * logits, axis=-1),
        ), None

    zeros = jnp.zeros(student.shape[:-1], jnp.float32)
    start = (jnp.full_like(zeros, -jnp.inf), zeros, zeros)
    totals, _ = jax.lax.scan(step, start, (blocks, teacher.blocks, teacher.columns))
    norm, mass, matched = totals
    return mass * norm - matched


def scores(tokens: Tokens, block: Float[Array, "width block"]) -> Float[Array, "*tokens block"]:
    """Logits of a block of prototypes, float32.

    Args:
        tokens: embeddings, float32 or bfloat16.
        block: prototypes of the same dtype.
    """
    return product("...d,dk->...k", tokens, block)


def _assign(
    tokens: jax.Array,
    blocks: jax.Array,
    temperature: jax.Array,
    column: Callable[[jax.Array, jax.Array], jax.Array],
) -> Assignment:
    """Assigns tokens with columns that are computed from the logits and index of a block."""

    def step(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, prototypes = block
        logits = scores(tokens, prototypes) / temperature
        columns = column(logits, i)
        return jnp.logaddexp(total, jax.nn.logsumexp(logits + columns, axis=-1)), columns

    start = jnp.full(tokens.shape[:-1], -jnp.inf)
    total, columns = jax.lax.scan(step, start, (jnp.arange(len(blocks)), blocks))
    return Assignment(tokens, blocks, temperature, -total, columns)
