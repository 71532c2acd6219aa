"""The order in which a ring of devices passes blocks on, such that every hop is to a neighbour.

In the order of the mesh, a TPU slice has hops from the end of one row to the start of the next. XLA
was seen to run a permutation with such hops synchronously, and one between neighbours only behind
the computation (libtpu 0.0.52, v5e:8x8 and v5e:16x16).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

Coordinates = tuple[int, ...]


def ring_route(mesh: Mesh, axes: Sequence[str]) -> list[int]:
    """A cyclic order of the positions along some axes of a mesh, from neighbour to neighbour.

    Slice by slice, since between slices no two chips are neighbours. Devices without coordinates,
    and positions that do not fill a grid with an even side, keep their order.

    Args:
        mesh: a mesh of P positions along `axes`.
        axes: some of its axes, in any order.

    Returns:
        All P positions, as numbers in the flattened order of the mesh's axes.
    """
    inside = [i for i, axis in enumerate(mesh.axis_names) if axis in axes]
    outside = [i for i in range(mesh.devices.ndim) if i not in inside]
    # Along the other axes the rings run in parallel, and the first of them speaks for all.
    sizes = [mesh.devices.shape[i] for i in inside]
    devices = mesh.devices.transpose(inside + outside).reshape(int(np.prod(sizes)), -1)[:, 0]

    slices: dict[Any, list[int]] = {}
    for position, device in enumerate(devices):
        slices.setdefault(getattr(device, "slice_index", 0), []).append(position)
    route = []
    for positions in slices.values():
        route += [positions[i] for i in neighbour_cycle([place(devices[i]) for i in positions])]
    return route


def place(device: Any) -> Coordinates:
    """Where a device sits in its slice: the chip's coordinates and, of its cores, which; or ()."""
    coordinates = getattr(device, "coords", None)
    return () if coordinates is None else (*coordinates, getattr(device, "core_on_chip", 0))


def neighbour_cycle(places: Sequence[Coordinates]) -> list[int]:
    """Orders the points of a full grid so that each, and the last with the first, are neighbours.

    Args:
        places: coordinates of the points, in any order, whose distinct values along each dimension
            count as successive.

    Returns:
        Indices into `places`; in their given order if they do not fill a grid, or no such cycle
        exists.
    """
    as_given = list(range(len(places)))
    values = [sorted(set(column)) for column in zip(*places, strict=True)]
    sides = [x for x in values if len(x) > 1]
    shape = [len(x) for x in sides]
    if len(set(places)) != len(places) or int(np.prod(shape)) != len(places) or len(shape) < 2:
        return as_given

    kept = [i for i, x in enumerate(values) if len(x) > 1]
    ranks = [tuple(values[i].index(place[i]) for i in kept) for place in places]
    index = {rank: i for i, rank in enumerate(ranks)}
    # Up one row of a table, then to and fro through the others, column by column. That ends beside
    # the start if the columns are even in number; a snake makes columns of several dimensions.
    first = next((i for i in range(len(shape)) if (len(places) // shape[i]) % 2 == 0), None)
    if first is None:
        return as_given
    columns = snake(shape[:first] + shape[first + 1 :])
    cycle = [(0, column) for column in reversed(columns)]
    for number, column in enumerate(columns):
        rows = range(1, shape[first])
        cycle += [(row, column) for row in (rows if number % 2 == 0 else reversed(rows))]
    return [index[(*column[:first], row, *column[first:])] for row, column in cycle]


def snake(shape: Sequence[int]) -> list[Coordinates]:
    """All points of a grid on a path from neighbour to neighbour."""
    path: list[Coordinates] = [()]
    for side in shape:
        there_and_back = itertools.cycle((range(side), range(side - 1, -1, -1)))
        path = [(*point, i) for point, way in zip(path, there_and_back, strict=False) for i in way]
    return path
