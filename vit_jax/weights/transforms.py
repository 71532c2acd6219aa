"""Conversion between the tensors of a file and the parameters of a model.

A `Transform` only moves elements. A round trip is therefore exact, and the shapes of the tensors
follow from applying it to empty arrays. Both sides are lists of arrays, since one parameter may be
several tensors (separate query, key and value) and one tensor several parameters.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """A pair of inverse functions.

    Attributes:
        load: (tensors, shapes of the parameters) -> parameters.
        save: (parameters) -> tensors.
    """

    load: Callable[[Sequence[np.ndarray], Sequence[Shape]], list[np.ndarray]]
    save: Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def one_to_one(
    load: Callable[[np.ndarray, Shape], np.ndarray], save: Callable[[np.ndarray], np.ndarray]
) -> Transform:
    """Returns a transform of single arrays.

    Args:
        load: (tensor, shape of the parameter) -> parameter.
        save: (parameter) -> tensor.
    """
    return Transform(
        lambda arrays, shapes: [load(x, s) for x, s in zip(arrays, shapes, strict=True)],
        lambda arrays: [save(x) for x in arrays],
    )


def linear(in_dims: int = 1) -> Transform:
    """Returns the transform between torch's (out, in) and a kernel.

    Inputs or outputs of the kernel may be split: (3 D, D) <-> (D, 3, H, hd) for fused query, key
    and value; (D, D) <-> (H, hd, D) with `in_dims=2` for the output projection of attention.

    Args:
        in_dims: number of leading dimensions of the kernel that are inputs.
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
# (in, out, height, width) of a transposed convolution <-> (height, width, in, out).
ENLARGING = one_to_one(lambda x, shape: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))
# A flat tensor and a parameter of any shape: biases (3 D,) <-> (3, H, hd).
FLAT = one_to_one(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
# The tensor has a leading dimension of one: positions (1, N, D) <-> (N, D).
LEADING_ONE = one_to_one(lambda x, shape: x[0], lambda x: x[None])
# The parameter has a leading dimension of one: class token (D,) <-> (1, D).
NO_LEADING_ONE = one_to_one(lambda x, shape: x[None], lambda x: x[0])


def stack(axis: int, each: Transform = IDENTITY) -> Transform:
    """Returns the transform between several tensors and one parameter that stacks them.

    Args:
        axis: axis of the parameter that stacks the tensors, not negative; 1 for query, key and
            value kernels (D, 3, H, hd).
        each: transform of the single arrays.
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
    """Returns the transform between one tensor and several parameters.

    The tensor concatenates the parameters along its first dimension.

    Args:
        each: transform of the parts; LINEAR for a fused (3 D, D) whose query is a parameter of its
            own.
    """

    def load(arrays: Sequence[np.ndarray], shapes: Sequence[Shape]) -> list[np.ndarray]:
        (array,) = arrays
        rows = [each.save([blank(shape)])[0].shape[0] for shape in shapes]
        if sum(rows) != array.shape[0]:
            raise ValueError(f"expected {sum(rows)} rows; found {array.shape[0]}")
        return each.load(np.split(array, np.cumsum(rows)[:-1]), shapes)

    return Transform(load, lambda arrays: [np.concatenate(each.save(arrays))])


# Separate query, key and value and the fused parameter: torch's (D, D) and (D,), Flax's (D, H, hd)
# and (H, hd).
SEPARATE_QKV = stack(1, LINEAR)
SEPARATE_QKV_BIAS = stack(0, FLAT)
FLAX_QKV = stack(1)
FLAX_QKV_BIAS = stack(0)


def blank(shape: Shape) -> np.ndarray:
    """Returns an array of a given shape that takes no memory, for computing shapes."""
    return np.broadcast_to(np.zeros((), np.int8), shape)
