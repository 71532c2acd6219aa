"""Fine-tuning: a new run's parameters from weights or from an earlier run (`config.init`).

Two models of one family share all paths. Of two families the image tower is shared: that of a
masked autoencoder or of a pair goes to a classifier, a classifier's to a pair. What the weights do
not bring, or bring in another shape, is fresh only where `config.init.fresh` asks for it.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.config import build_spec
from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.layers.positions import resize_positions, sincos_positions
from vit_jax.models.swin.windows import resize_bias_table
from vit_jax.models.vit.model import ViTConfig
from vit_jax.parallel.sharding import parameter_shardings
from vit_jax.pretrained.stored import Origin, open_origin
from vit_jax.training.freezing import match_paths
from vit_jax.weights.checks import describe
from vit_jax.weights.mapping import flatten, unflatten

logger = logging.getLogger(__name__)

_POSITIONS = "positions"
_BIAS_TABLE = "/bias_table"  # of Swin's windows; stacks of layers have more leading axes


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run's first parameters come from.

    Attributes:
        origin: the weights.
        taken: path of the new model -> path of the weights' model.
        towers: image towers of the weights' model and of the new one.
    """

    origin: Origin
    taken: dict[str, str]
    towers: tuple[Any, Any]

    def load(self, mesh: Mesh) -> Params:
        """The weights, sharded over the mesh."""
        return self.origin.load(parameter_shardings(self.origin.model, mesh))

    def fill(self, params: Params, weights: Params) -> Params:
        """Fresh parameters with those of the weights in their places. Pure: jit it."""
        leaves, source = flatten(params), flatten(weights)
        source.setdefault(self._positions_path, None)
        for path, key in self.taken.items():
            value = source[key]
            if key == self._positions_path:
                value = _positions(value, *self.towers)
            elif path.endswith(_BIAS_TABLE):
                value = _bias_tables(value, leaves[path].shape)
            leaves[path] = value.astype(leaves[path].dtype)
        return unflatten(leaves)

    @property
    def _positions_path(self) -> str:
        return _tower_prefix(self.origin.spec.architecture) + _POSITIONS


def build_start(config: ConfigDict, model: ModelDef) -> Start | None:
    """The start of a config; nothing is read yet. None for fresh parameters.

    Args:
        config: of the new run.
        model: of the new run.

    Raises:
        UserError: the weights do not fit and `config.init.fresh` does not say what to do.
    """
    about = config.init
    if not about.weights:
        if about.fresh or about.model:
            raise UserError("config.init.weights is not set, but other keys of config.init are")
        return None
    origin = open_origin(about.weights, about.model, build_spec(config), {})
    origin.check()
    towers = _tower(origin.spec.architecture), _tower(model.architecture)
    theirs = _under_our_names(origin, model, towers)
    ours = {path: tuple(x.shape) for path, x in flatten(model.shapes()).items()}
    fresh = _fresh(about.fresh, [*ours, *theirs])
    missing = {p: s for p, s in ours.items() if p not in theirs and p not in fresh}
    unexpected = {p: s for p, (_, s) in theirs.items() if p not in ours and p not in fresh}
    positions = _tower_prefix(model.architecture) + _POSITIONS
    misshapen = {
        path: f"expected {ours[path]}, found {shape}"
        for path, (_, shape) in theirs.items()
        if path in ours
        and path not in fresh
        and shape != ours[path]
        and not (path == positions and _same_prefix(*towers))
        and not (path.endswith(_BIAS_TABLE) and _same_heads(shape, ours[path]))
    }
    if missing or unexpected or misshapen:
        raise UserError(
            describe(f"config.init.weights={about.weights}", missing, unexpected, misshapen)
            + "\nconfig.init.fresh names parameters that shall not come from the weights, as "
            "('head/.*',); config.init.model the model that the weights belong to"
        )
    taken = {p: key for p, (key, _) in theirs.items() if p in ours and p not in fresh}
    logger.info(
        "Starting from %s: %d of %d parameters, fresh: %s",
        about.weights,
        len(taken),
        len(ours),
        ", ".join(sorted(fresh & ours.keys())) or "none",
    )
    return Start(origin, taken, towers)


def _under_our_names(
    origin: Origin, model: ModelDef, towers: tuple[Any, Any]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Path of the new model -> (path of the weights' model, shape), of all that they share."""
    shapes = {path: tuple(x.shape) for path, x in flatten(origin.model.shapes()).items()}
    old, new = (_tower_prefix(a) for a in (origin.spec.architecture, model.architecture))
    if _is_fixed(towers[0]) and not _is_fixed(towers[1]):
        shapes[old + _POSITIONS] = (towers[0].num_special + _count(towers[0]), towers[0].width)
    if origin.spec.family == model.family:
        return {path: (path, shape) for path, shape in shapes.items()}
    return {
        new + path.removeprefix(old): (path, shape)
        for path, shape in shapes.items()
        if path.startswith(old)
    }


def _fresh(patterns: Sequence[str], paths: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        found |= match_paths(pattern, paths, "config.init.fresh")
    return found


def _tower(architecture: Any) -> Any:
    """The image tower of an architecture: itself, or a part."""
    return getattr(architecture, "image", architecture)


def _tower_prefix(architecture: Any) -> str:
    return "image/" if hasattr(architecture, "image") else ""


def _is_fixed(tower: Any) -> bool:
    return isinstance(tower, ViTConfig) and tower.position_init == "fixed_sincos"


def _count(tower: ViTConfig) -> int:
    return tower.grid[0] * tower.grid[1]


def _position_rows(tower: ViTConfig) -> int:
    """Leading rows of the table of positions, which belong to no patch."""
    return tower.num_special if tower.prefix_positions else 0


def _same_prefix(old: Any, new: Any) -> bool:
    """Whether one tower's positions can be resized to the other's."""
    if not (isinstance(old, ViTConfig) and isinstance(new, ViTConfig)):
        return False
    return old.width == new.width and _position_rows(old) == _position_rows(new)


def _positions(table: jax.Array | None, old: ViTConfig, new: ViTConfig) -> jax.Array:
    """The new tower's learned positions; fixed ones (None) are computed, with a zero prefix."""
    if table is None:
        table = sincos_positions(old.grid, old.width)
        table = jnp.pad(table, ((_position_rows(old), 0), (0, 0)))
    return resize_positions(table, old.grid, new.grid, _position_rows(new))


def _same_heads(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether the tables of one window can be resized to the other's."""
    return (*old[:-2], old[-1]) == (*new[:-2], new[-1])


def _bias_tables(tables: jax.Array, wanted: tuple[int, ...]) -> jax.Array:
    """Tables (..., rows, heads) of square windows, for another window."""
    sides = [(math.isqrt(shape[-2]) + 1) // 2 for shape in (tables.shape, wanted)]
    old, new = ((side, side) for side in sides)
    resize = functools.partial(resize_bias_table, old=old, new=new, method="geometric")
    for _ in wanted[:-2]:
        resize = jax.vmap(resize)
    return resize(tables)
