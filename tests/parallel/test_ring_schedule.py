"""The order of a ring: every device once, from neighbour to neighbour."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from vit_jax.parallel.ring_schedule import neighbour_cycle, ring_route, snake


@dataclasses.dataclass(frozen=True)
class Chip:
    """Stands in for a device of a TPU slice."""

    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0


def grid(*sides):
    return list(itertools.product(*map(range, sides)))


def hops(places, cycle):
    path = [places[i] for i in cycle]
    return {int(np.abs(np.subtract(a, b)).sum()) for a, b in itertools.pairwise([*path, path[0]])}


@pytest.mark.parametrize(
    "sides", [(2, 2), (16, 16), (3, 4), (4, 3), (1, 4, 6), (4, 4, 4), (3, 3, 2), (5, 2, 3, 1)]
)
def test_neighbours_all_round(sides):
    places = grid(*sides)
    np.random.default_rng(0).shuffle(places)
    places = [tuple(map(int, place)) for place in places]
    cycle = neighbour_cycle(places)
    assert sorted(cycle) == list(range(len(places)))
    assert hops(places, cycle) == {1}


def test_every_second_column():
    places = [(2 * x, y) for x, y in grid(4, 8)]
    assert hops(places, neighbour_cycle(places)) == {1, 2}


@pytest.mark.parametrize(
    "places", [[(), ()], [(0,)], grid(8), grid(3, 3), grid(4, 4)[1:], [*grid(2, 2), *grid(2, 2)]]
)
def test_otherwise_as_given(places):
    assert neighbour_cycle(places) == list(range(len(places)))


def test_snake():
    assert snake((2, 3)) == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]


def test_slices_one_after_the_other():
    chips = [[Chip(s, (x, y, 0)) for x, y in grid(2, 4)] for s in (0, 1)]
    mesh = Mesh(np.array(chips), ("data", "fsdp"))
    route = ring_route(mesh, ("fsdp", "data"))
    assert sorted(route[:8]) == list(range(8))
    assert route[8:] == [8 + i for i in route[:8]]
    assert hops(grid(2, 4), route[:8]) == {1}
    assert ring_route(mesh, ("fsdp",)) == route[:8]
    assert ring_route(mesh, ("data",)) == [0, 1]


def test_cpu_devices_keep_their_order():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    assert ring_route(mesh, ("data",)) == [0]
