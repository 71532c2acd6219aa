"""Order in which a ring of devices passes blocks on, such that every hop is to a neighbour.

In the order of the mesh, a TPU slice has hops from the end of one row to the start of the next. XLA
was seen to run a permutation with such hops synchronously, and permutations between neighbours only
behind the computation (libtpu 0.0.52, v5e:8x8 and v5e:16x16).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

Coordinates = tuple[int, ...]


def ring_route(mesh: Mesh, axes: Sequence[str]) -> list[int]:
    """Cyclic order of the positions along some axes of a mesh, from neighbour to neighbour.

    The route visits one slice after the other, since chips of different slices are not neighbours.
    Devices without coordinates, and positions that do not fill a grid with an even side, keep their
    order.

    Args:
        mesh: mesh of P positions along `axes`.
        axes: axes of the ring, in any order.

    Returns:
        All P positions, as indices into the flattened axes in the order of the mesh.
    """
    inside = [i for i, axis in enumerate(mesh.axis_names) if axis in axes]
    outside = [i for i in range(mesh.devices.ndim) if i not in inside]
    # Along the other axes, rings run in parallel; all take the route of the first.
    sizes = [mesh.devices.shape[i] for i in inside]
    devices = mesh.devices.transpose(inside + outside).reshape(int(np.prod(sizes)), -1)[:, 0]

    slices: dict[Any, list[int]] = {}
    for position, device in enumerate(devices):
        slices.setdefault(getattr(device, "slice_index", 0), []).append(position)
    route = []
    for positions in slices.values():
        places = [_coordinates(devices[i]) for i in positions]
        route += [positions[i] for i in neighbour_cycle(places)]
    return route


def _coordinates(device: Any) -> Coordinates:
    """Coordinates of a device's chip in its slice, and the index of its core; or ()."""
    coordinates = getattr(device, "coords", None)
    return () if coordinates is None else (*coordinates, getattr(device, "core_on_chip", 0))


def neighbour_cycle(places: Sequence[Coordinates]) -> list[int]:
    """Orders the points of a full grid in a cycle of neighbours.

    Args:
        places: coordinates of the points, in any order. Distinct values along a dimension count as
            successive.

    Returns:
        Indices into `places`; in the given order if the points do not fill a grid, or if there is
        no such cycle.
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
    # Along the first row of a table, then up and down through the others, column by column. This
    # ends beside the start if the number of columns is even. A snake orders the columns of several
    # dimensions.
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
    """All points of a grid on a path from neighbour to neighbour.

    Args:
        shape: number of points along each dimension.
    """
    path: list[Coordinates] = [()]
    for side in shape:
        there_and_back = itertools.cycle((range(side), range(side - 1, -1, -1)))
        path = [(*point, i) for point, way in zip(path, there_and_back, strict=False) for i in way]
    return path
