"""A model as a pure function of its parameters, for jit, optimizers and checkpoints."""

import copy
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.errors import check_name, lookup
from vit_jax.models.layers.batch_norm import BatchNorm
from vit_jax.models.layers.keys import parameter_rngs
from vit_jax.models.ops.attention import ATTENTION
from vit_jax.models.partitioning import AUTO

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Nested dict of arrays; its paths are the attribute names of the modules.
Params = dict[str, Any]
# Kinds of variables that make up a model. The running statistics of batch norms lie among the
# parameters: checkpoints, averages and weight files need no second tree. Their metadata has
# `trainable=False`.
STORED = (nnx.Param, nnx.BatchStat)


class ModelDef:
    """A model without its parameters.

    `init` creates the parameters and `bind` makes a module from them. Between the two they are a
    nested dict of arrays:

        model = ModelDef(model_spec("vit_b16").architecture)
        params = jax.jit(model.init)(jax.random.key(0))
        logits = model.bind(params)(images)

    Attributes:
        architecture: dataclass of the architecture.
        execution: dtype, scan, remat and attention.
    """

    def __init__(
        self,
        architecture: Any,
        *,
        dtype: str = "float32",
        scan: bool = True,
        remat: str = "none",
        attention: str = "auto",
    ) -> None:
        """Traces the model without computing anything; an invalid architecture fails here.

        Args:
            architecture: dataclass of an architecture, see `registry.ARCHITECTURES`.
            dtype: compute type, "float32" or "bfloat16"; parameters are float32.
            scan: whether to scan the blocks (one trace) or to unroll them; the parameters are the
                same.
            remat: key of `layers.stacking.REMAT_POLICIES`.
            attention: key of `ops.attention.ATTENTION`, or "auto" for the choice by platform and
                shape.

        Raises:
            UserError: unknown dtype, policy or implementation; fields that contradict each other.
        """
        compute = lookup(DTYPES, dtype, "dtype")
        check_name(attention, [AUTO, *ATTENTION], "config.compute.attention")

        self.architecture = architecture
        self.execution: dict[str, Any] = {
            "dtype": dtype,
            "scan": scan,
            "remat": remat,
            "attention": attention,
        }
        self._build = functools.partial(_build, architecture, compute, scan, remat)
        try:
            traced = _trace(architecture, compute, scan, remat)
        except TypeError:  # fields that cannot be hashed
            traced = _trace.__wrapped__(architecture, compute, scan, remat)
        self._graphdef, self._template, self._layers_above = traced

    def init(self, key: jax.Array) -> Params:
        """Creates fresh parameters.

        The function is pure: jit it with output shardings to create the parameters in place.

        Args:
            key: PRNG key.
        """
        return nnx.to_pure_dict(nnx.state(self._build(key), STORED))

    def bind(self, params: Params) -> Any:
        """Creates the module with these parameters.

        Args:
            params: nested dict of arrays, as from `init`.
        """
        return nnx.merge(self._graphdef, nnx.State(params))

    def statistics(self, module: Any) -> Params:
        """Extracts the running statistics of a bound module, which a call in training updates.

        Args:
            module: result of `bind`.

        Returns:
            A subtree of the parameters; empty for a model without batch norms.
        """
        return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def with_frozen_statistics(self, frozen: Params) -> Self:
        """Creates the same model with frozen batch norms.

        Frozen batch norms use their running statistics in training as well.

        Args:
            frozen: tree of bool like the parameters.
        """
        module = nnx.merge(self._graphdef, self._template)
        for path, layer in nnx.iter_modules(module):
            if isinstance(layer, BatchNorm):
                own: Any = frozen
                for part in path:
                    own = own[part]
                layer.frozen = own["mean"]
        model = copy.copy(self)
        model._graphdef, model._template = nnx.split(module, STORED)
        return model

    def with_statistics(self, params: Params, statistics: Params) -> Params:
        """Replaces the running statistics in a copy of the parameters.

        Args:
            params: nested dict of arrays.
            statistics: result of the method `statistics`.
        """
        merged = dict(params)
        for name, value in statistics.items():
            nested = isinstance(value, dict)
            merged[name] = self.with_statistics(params[name], value) if nested else value
        return merged

    def shapes(self) -> Params:
        """Returns the `ShapeDtypeStruct` of every parameter."""
        return nnx.to_pure_dict(self._template)

    def layers_above(self) -> Params:
        """Counts the layers between each parameter and the output.

        Returns:
            A tree like that of the parameters. A stack of layers has an array of shape
            (layers, 1, ...) with one number per layer. Parameters that the module's own
            `layers_above` does not name have 0.
        """

        def describe(path: tuple[str, ...], x: jax.ShapeDtypeStruct) -> Any:
            parts = (self._layers_above.get("/".join(path[:i])) for i in range(len(path), 0, -1))
            above = next((part for part in parts if part is not None), 0)
            if isinstance(above, int):
                return above
            return np.reshape(np.asarray(above), (-1,) + (1,) * (len(x.shape) - 1))

        return jax.tree_util.tree_map_with_path(
            lambda path, x: describe(tuple(key.key for key in path), x), self.shapes()
        )

    def metadata(self, key: str, default: Any = None) -> Params:
        """Collects one item of the parameters' metadata.

        Args:
            key: "axes", "decay", "bounds" or "trainable".
            default: value for parameters without this item.

        Returns:
            A tree like that of the parameters.
        """
        tree: Params = {}
        for path, variable in nnx.to_flat_state(self._template):
            node: Any = tree
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = variable.get_metadata().get(key, default)
        return tree


def _build(architecture: Any, dtype: Any, scan: bool, remat: str, key: jax.Array) -> Any:
    """A module with fresh parameters."""
    return architecture.make(rngs=parameter_rngs(key), dtype=dtype, scan=scan, remat=remat)


@functools.lru_cache(maxsize=64)
def _trace(architecture: Any, dtype: Any, scan: bool, remat: str) -> tuple[Any, Any, Any]:
    """Structure, abstract parameters and `layers_above` of a module; one trace per architecture."""
    build = functools.partial(_build, architecture, dtype, scan, remat)
    abstract = nnx.eval_shape(build, jax.random.key(0))
    return (*nnx.split(abstract, STORED), abstract.layers_above())
