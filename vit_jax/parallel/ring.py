"""Collectives over a ring of devices, for functions that run on each device's own arrays."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from vit_jax.parallel.ring_schedule import ring_route

Tree = Any


@dataclasses.dataclass(frozen=True)
class DeviceRing:
    """The devices along some axes of a mesh, flattened to a ring.

    Attributes:
        mesh: mesh of the devices, its axes of type Auto; None for a ring of one device.
        axes: axes of `mesh` that form the ring.
    """

    mesh: Mesh | None
    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of devices in the ring."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in self.axes)

    def send(self, tree: Tree) -> Tree:
        """Sends arrays to the next device.

        Args:
            tree: local arrays, within `on_each_device`.

        Returns:
            The arrays of the previous device.
        """
        if self.size == 1:
            return tree
        assert self.mesh is not None
        # In the order of the mesh: JAX numbers the devices of a permutation in this order, whatever
        # the order of the axes (0.10 silently, 0.12 refuses any other).
        axes = tuple(axis for axis in self.mesh.axis_names if axis in self.axes)
        route = ring_route(self.mesh, axes)
        hops = list(zip(route, route[1:] + route[:1], strict=True))
        return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, hops), tree)

    def total(self, tree: Tree) -> Tree:
        """Sums local arrays over the ring, within `on_each_device`."""
        return tree if self.size == 1 else jax.lax.psum(tree, self.axes)

    def on_each_device(self, function: Callable, *, inputs: Tree, outputs: Tree) -> Callable:
        """Turns a function on local arrays into one on global arrays.

        Args:
            function: function of local arrays. It must not be differentiated.
            inputs: tree of bool, which arguments are split over the ring; others are replicated.
            outputs: tree of bool, which outputs are split over the ring; others are replicated.
        """
        if self.mesh is None:
            return function
        split, whole = PartitionSpec(self.axes), PartitionSpec()
        specs = jax.tree.map(lambda is_split: split if is_split else whole, (inputs, outputs))
        # check_vma would track which values vary over which axis, to transpose collectives in
        # autodiff. There is no autodiff here, and every initial loop state would need annotations.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False
        )
