"""Initial parameters from weights or from an earlier run (`config.init`), for fine-tuning.

Two models of one architecture share all parameter paths. Models of different architectures share
the image tower: that of a masked autoencoder or a dual encoder initialises a classifier, a
classifier initialises the tower of a dual encoder. A parameter that the weights lack, or have in
another shape, keeps its fresh value only if `config.init.fresh` names it.
"""

import dataclasses
import functools
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.layers.positions import resize_positions, sincos_positions
from vit_jax.models.spec import ModelSpec
from vit_jax.models.swin.windows import resize_bias_table
from vit_jax.models.vit.model import ViTConfig
from vit_jax.parallel.sharding import parameter_shardings
from vit_jax.pretrained.stored import StoredModel, open_stored_model
from vit_jax.training.freezing import match_paths
from vit_jax.weights.checks import describe

logger = logging.getLogger(__name__)

_POSITIONS = "positions"
_BIAS_TABLE = "/bias_table"  # of Swin's windows; stacks of layers have more leading axes


@dataclasses.dataclass(frozen=True)
class Initialization:
    """Stored parameters and their places in a new model.

    Attributes:
        stored: model of the stored parameters.
        paths: path in the new model -> path in the stored model.
        towers: architectures of the image towers, stored and new.
    """

    stored: StoredModel
    paths: dict[str, str]
    towers: tuple[Any, Any]

    @property
    def abstract(self) -> Params:
        """`ShapeDtypeStruct`s of the stored parameters."""
        return self.stored.model.shapes()

    def load(self, mesh: Mesh) -> Params:
        """Reads the stored parameters, sharded over the mesh."""
        return self.stored.load(parameter_shardings(self.stored.model, mesh))

    def fill(self, params: Params, weights: Params) -> Params:
        """Replaces fresh parameters by stored ones. Pure: jit it.

        Args:
            params: fresh parameters of the new model.
            weights: stored parameters, as `load` returns them.
        """
        leaves, source = flatten_dict(params, sep="/"), flatten_dict(weights, sep="/")
        positions = _tower_prefix(self.stored.spec.architecture) + _POSITIONS
        source.setdefault(positions, None)
        for path, key in self.paths.items():
            value = source[key]
            if key == positions:
                value = _positions(value, *self.towers)
            elif path.endswith(_BIAS_TABLE):
                value = _bias_tables(value, leaves[path].shape)
            leaves[path] = value.astype(leaves[path].dtype)
        return unflatten_dict(leaves, sep="/")


def build_initialization(
    init: ConfigDict, spec: ModelSpec, model: ModelDef
) -> Initialization | None:
    """Opens the weights of `config.init`, without reading their tensors.

    Args:
        init: block of the config.
        spec: architecture and image preprocessing of the new model, which is also that of weights
            that do not name theirs.
        model: the new model.

    Returns:
        The initialization, or None for fresh parameters.

    Raises:
        UserError: the weights do not fit the model, and `config.init.fresh` does not name the
            parameters that differ.
    """
    if not init.weights:
        if init.fresh or init.model:
            raise UserError("config.init.weights is not set, but other keys of config.init are")
        return None
    stored = open_stored_model(init.weights, init.model, spec, {})
    stored.check()
    towers = _tower(stored.spec.architecture), _tower(model.architecture)
    theirs = _under_new_paths(stored, model, towers)
    ours = {path: tuple(x.shape) for path, x in flatten_dict(model.shapes(), sep="/").items()}
    fresh: set[str] = set()
    for pattern in init.fresh:
        fresh |= match_paths(pattern, [*ours, *theirs], "config.init.fresh")
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
            describe(f"config.init.weights={init.weights}", missing, unexpected, misshapen)
            + "\nconfig.init.fresh names parameters that keep their fresh values, as "
            "('head/.*',); config.init.model names the model that the weights belong to"
        )
    paths = {p: key for p, (key, _) in theirs.items() if p in ours and p not in fresh}
    logger.info(
        "Initialised %d of %d parameters from %s; fresh: %s.",
        len(paths),
        len(ours),
        init.weights,
        ", ".join(sorted(fresh & ours.keys())) or "none",
    )
    return Initialization(stored, paths, towers)


def _under_new_paths(
    stored: StoredModel, model: ModelDef, towers: tuple[Any, Any]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Path in the new model -> (path in the stored model, shape), for all that the two share."""
    flat = flatten_dict(stored.model.shapes(), sep="/")
    shapes = {path: tuple(x.shape) for path, x in flat.items()}
    old, new = (_tower_prefix(a) for a in (stored.spec.architecture, model.architecture))
    if _is_fixed(towers[0]) and not _is_fixed(towers[1]):
        rows = towers[0].num_special + math.prod(towers[0].grid)
        shapes[old + _POSITIONS] = (rows, towers[0].width)
    if type(stored.spec.architecture) is type(model.architecture):
        return {path: (path, shape) for path, shape in shapes.items()}
    return {
        new + path.removeprefix(old): (path, shape)
        for path, shape in shapes.items()
        if path.startswith(old)
    }


def _tower(architecture: Any) -> Any:
    """Architecture of the image tower: a part of a dual encoder, or the whole."""
    return getattr(architecture, "image", architecture)


def _tower_prefix(architecture: Any) -> str:
    return "image/" if hasattr(architecture, "image") else ""


def _is_fixed(tower: Any) -> bool:
    return isinstance(tower, ViTConfig) and tower.position_init == "fixed_sincos"


def _position_rows(tower: ViTConfig) -> int:
    """Leading rows of the position table, which belong to no patch."""
    return tower.num_special if tower.prefix_positions else 0


def _same_prefix(old: Any, new: Any) -> bool:
    """Whether the positions of one tower can be resized to those of the other."""
    if not (isinstance(old, ViTConfig) and isinstance(new, ViTConfig)):
        return False
    return old.width == new.width and _position_rows(old) == _position_rows(new)


def _positions(table: jax.Array | None, old: ViTConfig, new: ViTConfig) -> jax.Array:
    """Learned positions of the new tower; fixed ones (None) are computed, with a zero prefix."""
    if table is None:
        table = sincos_positions(old.grid, old.width)
        table = jnp.pad(table, ((_position_rows(old), 0), (0, 0)))
    return resize_positions(table, old.grid, new.grid, _position_rows(new))


def _same_heads(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether bias tables of one window can be resized to another's."""
    return (*old[:-2], old[-1]) == (*new[:-2], new[-1])


def _bias_tables(tables: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bias tables (..., rows, heads) of square windows, resized to a shape."""
    old, new = ((math.isqrt(s[-2]) + 1) // 2 for s in (tables.shape, shape))
    resize = functools.partial(
        resize_bias_table, old=(old, old), new=(new, new), method="geometric"
    )
    for _ in shape[:-2]:
        resize = jax.vmap(resize)
    return resize(tables)
