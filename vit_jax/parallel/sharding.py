"""Sharding of parameters, training state and activations, from their logical dimensions."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError
from vit_jax.models import partitioning
from vit_jax.models.definition import ModelDef, Params
from vit_jax.parallel.mesh import BATCH_AXES, DATA, FSDP, TENSOR, replicated

# (Logical dimension of a parameter, mesh axis); the first rule that fits applies. A matrix is split
# along heads, hidden units or words over `tensor`, which divides its work, and along its width over
# `fsdp`, which divides its storage. Where no dimension divides the work (patches, positions), the
# width is split over `tensor` as well.
PARAMETER_RULES = (
    ("heads", TENSOR),
    ("mlp", TENSOR),
    ("vocab", TENSOR),
    ("joint", TENSOR),
    ("embed", FSDP),
    ("embed", TENSOR),
)
# Logical dimension of an activation -> mesh axes. Without these constraints, the partitioner may
# replicate the batch where parameters are split, and on large slices it does.
ACTIVATION_RULES: dict[str | None, Any] = {
    "batch": BATCH_AXES,
    "heads": TENSOR,
    "mlp": TENSOR,
}
# Largest fraction of the parameters that may be replicated although the mesh could split them.
MAX_REPLICATED = 0.02


def parameter_shardings(model: ModelDef, mesh: Mesh) -> Any:
    """Shardings of the parameters, by `PARAMETER_RULES`.

    Vectors (norms, biases) and scalars are replicated: gathering them would take more time than the
    memory is worth. A dimension that its mesh axis does not divide is not split.

    Args:
        model: model whose parameters are placed.
        mesh: mesh of the devices.

    Returns:
        Tree of `NamedSharding` like the parameters.
    """

    def place(axes: tuple[str, ...], x: jax.ShapeDtypeStruct) -> NamedSharding:
        if not _is_matrix(axes):
            return replicated(mesh)
        spec: list[str | None] = [None] * len(axes)
        for name, axis in PARAMETER_RULES:
            if name not in axes or axis in spec or mesh.shape[axis] == 1:
                continue
            dimension = axes.index(name)
            if spec[dimension] is None and x.shape[dimension] % mesh.shape[axis] == 0:
                spec[dimension] = axis
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(
        place, model.metadata("axes"), model.shapes(), is_leaf=lambda x: isinstance(x, tuple)
    )


def split_further(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """Splits the largest free dimension over `data` as well (ZeRO, Rajbhandari et al. 2020).

    It applies to optimizer state, which is read once per step: each replica updates its part.

    Args:
        sharding: sharding of a parameter.
        shape: shape of the parameter.
    """
    mesh, parts = sharding.mesh, sharding.mesh.shape[DATA]
    spec = list(sharding.spec) + [None] * (len(shape) - len(sharding.spec))
    free = [i for i, axis in enumerate(spec) if axis is None and shape[i] % parts == 0]
    if parts == 1 or not free:
        return sharding
    spec[max(free, key=lambda i: shape[i])] = DATA
    return NamedSharding(mesh, PartitionSpec(*spec))


def state_shardings(abstract: Any, model: ModelDef, mesh: Mesh, zero1: bool) -> Any:
    """Shardings of a `TrainState`.

    Args:
        abstract: `ShapeDtypeStruct`s of the state.
        model: model of the state.
        mesh: mesh of the devices.
        zero1: whether optimizer state and moving averages are split over `data` as well.

    Returns:
        Shardings in the structure of the state.
    """
    params = parameter_shardings(model, mesh)
    shapes = model.shapes()
    moments = params
    if zero1:
        moments = jax.tree.map(lambda s, x: split_further(s, x.shape), params, shapes)
    whole = replicated(mesh)
    return abstract.replace(
        step=whole,
        params=params,
        opt_state=_optimizer_shardings(abstract.opt_state, shapes, moments, whole),
        ema=None if abstract.ema is None else moments,
        anchor=None if abstract.anchor is None else moments,
    )


def _optimizer_shardings(
    opt_state: Any, shapes: Params, shardings: Any, otherwise: NamedSharding
) -> Any:
    """Shardings of an optimizer's state: moments are sharded like their parameters.

    A moment is an array with the shape of a parameter, at a path that ends in the parameter's path,
    however deep the optimizer nests its states.
    """
    places = flatten_dict(shardings)
    by_path = {path: (x.shape, places[path]) for path, x in flatten_dict(shapes).items()}

    def place(path: Any, x: jax.ShapeDtypeStruct) -> NamedSharding:
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        found = (by_path.get(names[i:]) for i in range(len(names)))
        return next((s for shape, s in filter(None, found) if shape == x.shape), otherwise)

    return jax.tree_util.tree_map_with_path(place, opt_state)


def check_sharded(model: ModelDef, mesh: Mesh) -> None:
    """Checks that a mesh splits the parameters.

    Args:
        model: model whose parameters are placed.
        mesh: mesh of the devices.

    Raises:
        UserError: more than 2% of the parameters are in matrices that no device axis divides; the
            largest are named.
    """
    if mesh.shape[FSDP] * mesh.shape[TENSOR] == 1:
        return
    shapes = flatten_dict(model.shapes(), sep="/")
    axes = flatten_dict(model.metadata("axes"), sep="/")
    shardings = flatten_dict(parameter_shardings(model, mesh), sep="/")
    whole = {
        path: x
        for path, x in shapes.items()
        if _is_matrix(axes[path]) and shardings[path].is_fully_replicated
    }
    fraction = sum(x.size for x in whole.values()) / sum(x.size for x in shapes.values())
    if fraction > MAX_REPLICATED:
        largest = sorted(whole, key=lambda path: -whole[path].size)[:3]
        names = ", ".join(f"{path} {whole[path].shape}" for path in largest)
        raise UserError(
            f"mesh: fsdp={mesh.shape[FSDP]} x tensor={mesh.shape[TENSOR]} leaves "
            f"{fraction:.0%} of the parameters whole on every device ({names}); choose sizes that "
            "divide the model's width, heads and hidden units"
        )


def _is_matrix(axes: tuple[str, ...]) -> bool:
    return sum(name != "layers" for name in axes) >= 2


class ActivationPlacement:
    """Places activations on a mesh, by `ACTIVATION_RULES`; implements `partitioning.Placement`."""

    def __init__(self, mesh: Mesh) -> None:
        """Builds the placement.

        Args:
            mesh: mesh of the devices.
        """
        self.mesh = mesh

    def constrain(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Constrains the sharding of an activation.

        A dimension that its mesh axes do not divide is left to the partitioner.

        Args:
            x: activation.
            axes: logical name of each dimension; None for no constraint.
        """
        spec = [
            ACTIVATION_RULES.get(name) if size % self.shards(name) == 0 else None
            for name, size in zip(axes, x.shape, strict=True)
        ]
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def shards(self, axis: str | None) -> int:
        """Number of parts that a logical dimension is split into.

        Args:
            axis: logical name; None for a dimension that is not split.
        """
        names = ACTIVATION_RULES.get(axis)
        names = (names,) if isinstance(names, str) else (names or ())
        return math.prod(self.mesh.shape[name] for name in names)

    def per_shard(self, function: Callable, in_axes: Any, out_axes: Any) -> Callable:
        """Applies a function to the shards of each device, see `partitioning.per_shard`."""

        def on_mesh(spec: PartitionSpec) -> PartitionSpec:
            return PartitionSpec(*(ACTIVATION_RULES.get(name) for name in spec))

        def specs(tree: Any) -> Any:
            return jax.tree.map(on_mesh, tree, is_leaf=lambda x: isinstance(x, PartitionSpec))

        # The function has no collectives, whose results the check would be about.
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=specs(in_axes),
            out_specs=specs(out_axes),
            check_vma=False,
        )


def tracing_for(model: ModelDef, mesh: Mesh) -> AbstractContextManager[None]:
    """Context in which a model is traced for a mesh.

    Args:
        model: model with its kernels.
        mesh: mesh of the devices.
    """
    device = mesh.devices.flat[0]
    return partitioning.use(
        ActivationPlacement(mesh),
        device.platform,
        device_kind=device.device_kind,
        attention=model.execution["attention"],
    )
