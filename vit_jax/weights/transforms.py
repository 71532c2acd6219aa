"""How arrays of another library become ours and ours become theirs.

A `Transform` moves elements and computes nothing, so that a round trip is exact to the bit and the
shapes it needs follow from running it on empty arrays. Arrays come and go as lists, because one of
ours may be several of theirs (separate query, key and value) or the other way round.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """A pair of inverse functions.

    Attributes:
        load: (their arrays, shapes of ours) -> our arrays.
        save: (our arrays) -> their arrays.
    """

    load: Callable[[Sequence[np.ndarray], Sequence[Shape]], list[np.ndarray]]
    save: Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def one_to_one(
    load: Callable[[np.ndarray, Shape], np.ndarray], save: Callable[[np.ndarray], np.ndarray]
) -> Transform:
    """A transform of one array: `load(theirs, our shape)` and `save(ours)`."""
    return Transform(
        lambda arrays, shapes: [load(x, s) for x, s in zip(arrays, shapes, strict=True)],
        lambda arrays: [save(x) for x in arrays],
    )


def linear(in_dims: int = 1) -> Transform:
    """torch's (out, in) <-> our kernel, whose first `in_dims` dimensions are inputs.

    Either side of our kernel may be split: fused query, key and value (3 D, D) <-> (D, 3, H, hd),
    attention's output with `in_dims=2` (D, D) <-> (H, hd, D).
    """
    return one_to_one(
        lambda x, shape: x.T.reshape(shape),
        lambda x: x.reshape(math.prod(x.shape[:in_dims]), -1).T,
    )


IDENTITY = one_to_one(lambda x, shape: x, lambda x: x)
LINEAR = linear()
ATTENTION_OUT = linear(in_dims=2)
# (out, in, height, width) <-> (height, width, in, out).
CONV = one_to_one(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# Any shape of ours is one dimension of theirs: biases (3 D,) <-> (3, H, hd).
FLAT = one_to_one(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
# Theirs has a leading dimension of one that ours lacks: positions (1, N, D) <-> (N, D).
LEADING_ONE = one_to_one(lambda x, shape: x[0], lambda x: x[None])
# Ours has a leading dimension of one that theirs lacks: class token (D,) <-> (1, D).
NO_LEADING_ONE = one_to_one(lambda x, shape: x[None], lambda x: x[0])


def stack(axis: int, each: Transform = IDENTITY) -> Transform:
    """Several arrays of theirs <-> one of ours, along a new axis of ours.

    Args:
        axis: of ours, not negative: 1 for query, key and value kernels (D, 3, H, hd).
        each: applied to the single arrays.
    """

    def load(arrays: Sequence[np.ndarray], shapes: Sequence[Shape]) -> list[np.ndarray]:
        (shape,) = shapes
        part = shape[:axis] + shape[axis + 1 :]
        return [np.stack(each.load(arrays, [part] * len(arrays)), axis)]

    def save(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        (array,) = arrays
        return each.save(list(np.moveaxis(array, axis, 0)))

    return Transform(load, save)


def concatenate(each: Transform = IDENTITY) -> Transform:
    """One array of theirs <-> several of ours, one after the other along its first dimension.

    Args:
        each: applied to the parts: LINEAR for a fused (3 D, D) whose query we keep apart.
    """

    def load(arrays: Sequence[np.ndarray], shapes: Sequence[Shape]) -> list[np.ndarray]:
        (array,) = arrays
        rows = [each.save([blank(shape)])[0].shape[0] for shape in shapes]
        if sum(rows) != array.shape[0]:
            raise ValueError(f"{array.shape[0]} rows for parts of {rows}")
        return each.load(np.split(array, np.cumsum(rows)[:-1]), shapes)

    return Transform(load, lambda arrays: [np.concatenate(each.save(arrays))])


# Separate query, key and value <-> fused: torch's (D, D) and (D,); Flax's (D, H, hd) and (H, hd).
SEPARATE_QKV = stack(1, LINEAR)
SEPARATE_QKV_BIAS = stack(0, FLAT)
FLAX_QKV = stack(1)
FLAX_QKV_BIAS = stack(0)


def blank(shape: Shape) -> np.ndarray:
    """An array of that shape that takes no memory, to learn what a transform does to shapes."""
    return np.broadcast_to(np.zeros((), np.int8), shape)
