"""From the roles that a model gives its parameters to places on the mesh."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef
from vit_jax.models.partitioning import Constraint
from vit_jax.parallel.mesh import BATCH_AXES, replicated

# Logical dimension of a parameter -> mesh axis, the first that fits. A matrix is split along heads,
# hidden units or words for work, along its width for storage, and where it has nothing to split
# for work (patches, positions) its width is split over those devices too.
PARAMETER_RULES = (
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("joint", "tensor"),
    ("embed", "fsdp"),
    ("embed", "tensor"),
)
# Logical dimension of an activation -> mesh axes. Without these the partitioner is free to
# replicate the batch where parameters are split, and on large slices it does.
ACTIVATION_RULES: dict[str | None, Any] = {
    "batch": BATCH_AXES,
    "heads": "tensor",
    "mlp": "tensor",
}
# Fraction of the parameters' bytes that may stay whole although the mesh could split them.
MAX_REPLICATED = 0.02


def parameter_shardings(model: ModelDef, mesh: Mesh) -> Any:
    """A NamedSharding for each parameter, by `PARAMETER_RULES`.

    Vectors (norms, biases) and scalars stay whole: they are small, and gathering them costs more
    time than they take memory. A dimension that its mesh axis does not divide stays whole too.
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

    For optimizer state, which is touched once a step: each replica updates its part.
    """
    mesh, parts = sharding.mesh, sharding.mesh.shape["data"]
    spec = list(sharding.spec) + [None] * (len(shape) - len(sharding.spec))
    free = [i for i, axis in enumerate(spec) if axis is None and shape[i] % parts == 0]
    if parts == 1 or not free:
        return sharding
    spec[max(free, key=lambda i: shape[i])] = "data"
    return NamedSharding(mesh, PartitionSpec(*spec))


def state_shardings(abstract: Any, model: ModelDef, mesh: Mesh, zero1: bool) -> Any:
    """Shardings of a whole `TrainState`, in its own structure.

    Args:
        abstract: the state's `ShapeDtypeStruct`s.
        model: of the state.
        mesh: the mesh.
        zero1: whether optimizer state and moving average are split over `data` too.
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
        opt_state=_beside_parameters(abstract.opt_state, shapes, moments, whole),
        ema=None if abstract.ema is None else moments,
    )


def _beside_parameters(tree: Any, shapes: Any, shardings: Any, otherwise: NamedSharding) -> Any:
    """Shardings of an optimizer's state: a moment lies as its parameter.

    A moment is what has the shape of a parameter and a path that ends in the parameter's, however
    deep the optimizer nests its states.
    """
    places = {
        _names(path): (x.shape, sharding)
        for (path, x), sharding in zip(
            jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True
        )
    }

    def place(path: Any, x: jax.ShapeDtypeStruct) -> NamedSharding:
        names = _names(path)
        found = (places.get(names[i:]) for i in range(len(names)))
        return next((s for shape, s in filter(None, found) if shape == x.shape), otherwise)

    return jax.tree_util.tree_map_with_path(place, tree)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def check_sharded(model: ModelDef, mesh: Mesh) -> None:
    """Refuses a mesh on which more than 2% of the parameters' bytes stay whole by accident.

    Raises:
        UserError: names the largest such parameters with their shapes.
    """
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    if parts == 1:
        return
    shardings = jax.tree.leaves(parameter_shardings(model, mesh))
    axes = jax.tree.leaves(model.metadata("axes"), is_leaf=lambda x: isinstance(x, tuple))
    paths = jax.tree_util.tree_leaves_with_path(model.shapes())
    whole = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for (path, x), names, sharding in zip(paths, axes, shardings, strict=True)
        if _is_matrix(names) and sharding.is_fully_replicated
    }
    total = sum(x.size for _, x in paths)
    lost = sum(x.size for x in whole.values())
    if lost > MAX_REPLICATED * total:
        largest = sorted(whole, key=lambda name: -whole[name].size)[:3]
        names = ", ".join(f"{name} {whole[name].shape}" for name in largest)
        raise UserError(
            f"config.mesh: fsdp={mesh.shape['fsdp']} x tensor={mesh.shape['tensor']} leaves "
            f"{lost / total:.0%} of the parameters whole on every device ({names}); choose sizes "
            "that divide the model's width, heads and hidden units"
        )


def _is_matrix(axes: tuple[str, ...]) -> bool:
    return sum(name != "layers" for name in axes) >= 2


def activation_constraint(mesh: Mesh) -> Constraint:
    """The constraint that models apply within `partitioning.use`."""

    def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        spec = [ACTIVATION_RULES.get(name) for name in axes]
        # A dimension that the mesh does not divide is left to the partitioner.
        spec = [s if _divides(mesh, s, n) else None for s, n in zip(spec, x.shape, strict=True)]
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return constrain


def _divides(mesh: Mesh, axes: Any, size: int) -> bool:
    names = (axes,) if isinstance(axes, str) else (axes or ())
    return size % math.prod(mesh.shape[name] for name in names) == 0
