"""Low-rank adaptation (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").

An adapted matrix is W = W0 + alpha / rank * A B, where only A and B are trained. The parameters of
the run are always the merged W: checkpoints, averages, evaluations and weight files hold ordinary
weights, and models know nothing of adapters. W0, A and B belong to the state of the optimizer. By
the chain rule their gradients follow from that of W, so that a step computes what a forward pass
with separate adapters would. The optimizer has moments of A and B alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef, Params
from vit_jax.training.freezing import match_paths
from vit_jax.training.optimizer_zoo import matrix_dimensions

if TYPE_CHECKING:
    from vit_jax.training.optimizers import OptimConfig

_KEY = "config.optim.lora_{}"


class LoraState(NamedTuple):
    """State of the optimizer.

    Attributes:
        base: the adapted matrices W0, nested like the parameters.
        trained: `a` and `b` in the place of each adapted matrix, and parameters trained in full.
        inner: state of the optimizer of `trained`.
    """

    base: Params
    trained: Params
    inner: Any


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """A parameter as a batch of matrices, see `matrix_dimensions`.

    Attributes:
        shape: shape of the parameter.
        axes: logical names of its dimensions.
        inputs: dimensions of the inputs.
        outputs: dimensions of the outputs.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def batch(self) -> tuple[int, ...]:
        """Dimensions of the batch."""
        return tuple(i for i in range(len(self.shape)) if i not in self.inputs + self.outputs)

    @property
    def sizes(self) -> tuple[tuple[int, ...], int, int]:
        """Shape of the batch, numbers of inputs and of outputs."""
        batch, inputs, outputs = (
            tuple(self.shape[i] for i in part) for part in (self.batch, self.inputs, self.outputs)
        )
        return batch, math.prod(inputs), math.prod(outputs)

    def split(self, x: jax.Array) -> jax.Array:
        """The parameter as (*batch, inputs, outputs)."""
        batch, inputs, outputs = self.sizes
        order = self.batch + self.inputs + self.outputs
        return jnp.transpose(x, order).reshape(*batch, inputs, outputs)

    def join(self, x: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        order = self.batch + self.inputs + self.outputs
        shape = [self.shape[i] for i in order]
        return jnp.transpose(x.reshape(shape), np.argsort(order).tolist())


class Lora:
    """The adapters of a model."""

    def __init__(self, keys: "OptimConfig", model: ModelDef, seed: int = 0):
        """Chooses the adapted matrices.

        Args:
            keys: the keys `lora_*`, of which `lora_rank` is positive.
            model: model whose parameters are adapted.
            seed: PRNG seed of A.

        Raises:
            UserError: an expression that matches nothing, or a parameter that is no matrix; a rank
                that a matrix does not have; `freeze` beside it.
        """
        self._rank, self._scale, self._seed = keys.lora_rank, keys.lora_alpha / keys.lora_rank, seed
        if keys.freeze:
            raise UserError(
                "config.optim.freeze and lora_rank exclude each other: with adapters all is frozen "
                "that lora_paths and lora_full do not name"
            )
        shapes, axes, decay = (
            flatten_dict(tree, sep="/")
            for tree in (model.shapes(), model.metadata("axes"), model.metadata("decay"))
        )
        self.full = _match(keys.lora_full, shapes, "full")
        if not keys.lora_paths:
            raise UserError(
                f"config.optim.lora_rank={self._rank} needs config.optim.lora_paths, as "
                "('.*/attention/.*kernel',)"
            )
        self.matrices: dict[str, _Matrix] = {}
        for path in sorted(_match(keys.lora_paths, shapes, "paths") - self.full):
            dimensions = matrix_dimensions(axes[path], decay[path])
            if dimensions is None:
                raise UserError(
                    f"config.optim.lora_paths: expected matrices; found {path} of the shape "
                    f"{shapes[path].shape}"
                )
            inputs, outputs = dimensions.reduction_axis, dimensions.output_axis
            matrix = _Matrix(shapes[path].shape, axes[path], tuple(inputs), tuple(outputs))
            if self._rank > min(matrix.sizes[1:]):
                raise UserError(
                    f"config.optim.lora_rank={self._rank}: expected at most {min(matrix.sizes[1:])}"
                    f", the rank of {path}"
                )
            self.matrices[path] = matrix
        self.model = _AdaptedModel(model, self)

    def frozen(self, model: ModelDef) -> Params:
        """Tree of bool like the parameters: all that are neither adapted nor trained in full."""
        trained = self.matrices.keys() | self.full
        paths = flatten_dict(model.shapes(), sep="/")
        return unflatten_dict({path: path not in trained for path in paths}, sep="/")

    def shapes(self, path: str) -> dict[str, jax.ShapeDtypeStruct]:
        """`ShapeDtypeStruct`s of A (*batch, inputs, rank) and B (*batch, rank, outputs)."""
        batch, inputs, outputs = self.matrices[path].sizes
        sizes = {"a": (inputs, self._rank), "b": (self._rank, outputs)}
        return {x: jax.ShapeDtypeStruct(batch + size, jnp.float32) for x, size in sizes.items()}

    def merge(self, path: str, base: jax.Array, adapters: Mapping[str, jax.Array]) -> jax.Array:
        """W = W0 + alpha / rank * A B, float32.

        Args:
            path: path of the matrix.
            base: W0.
            adapters: `a` and `b`.
        """
        return base + self._scale * self.matrices[path].join(_matmul(adapters["a"], adapters["b"]))

    def wrap(self, inner: optax.GradientTransformation) -> optax.GradientTransformation:
        """Makes an optimizer of merged weights from one of the adapters.

        Args:
            inner: optimizer of `trained`, see `LoraState`, built for `self.model`.
        """

        def init(params: Params) -> LoraState:
            leaves = flatten_dict(params, sep="/")
            # A copy, since donated buffers must not occur twice.
            base = {path: jnp.copy(leaves[path]) for path in self.matrices}
            trained = {path: jnp.copy(leaves[path]) for path in self.full}
            for number, path in enumerate(self.matrices):
                shapes, key = self.shapes(path), jax.random.key(self._seed)
                bound = 1 / math.sqrt(self.matrices[path].sizes[1])  # as loralib
                key = jax.random.fold_in(key, number)
                trained[f"{path}/a"] = jax.random.uniform(
                    key, shapes["a"].shape, jnp.float32, -bound, bound
                )
                trained[f"{path}/b"] = jnp.zeros(shapes["b"].shape, jnp.float32)
            tree = unflatten_dict(trained, sep="/")
            return LoraState(unflatten_dict(base, sep="/"), tree, inner.init(tree))

        def update(grads: Params, state: LoraState, params: Params | None = None) -> tuple:
            leaves, gradient = flatten_dict(params, sep="/"), flatten_dict(grads, sep="/")
            base, before = (flatten_dict(tree, sep="/") for tree in (state.base, state.trained))
            own = {path: gradient[path] for path in self.full}
            for path, matrix in self.matrices.items():
                g = self._scale * matrix.split(gradient[path])
                own[f"{path}/a"] = _matmul(g, jnp.swapaxes(before[f"{path}/b"], -1, -2))
                own[f"{path}/b"] = _matmul(jnp.swapaxes(before[f"{path}/a"], -1, -2), g)
            steps, inner_state = inner.update(
                unflatten_dict(own, sep="/"), state.inner, state.trained
            )
            after = flatten_dict(optax.apply_updates(state.trained, steps), sep="/")
            updates = {path: jnp.zeros_like(x) for path, x in leaves.items()}
            updates |= {path: after[path] - leaves[path] for path in self.full}
            for path in self.matrices:
                adapters = {name: after[f"{path}/{name}"] for name in ("a", "b")}
                updates[path] = self.merge(path, base[path], adapters) - leaves[path]
            trained = unflatten_dict(after, sep="/")
            return unflatten_dict(updates, sep="/"), LoraState(state.base, trained, inner_state)

        return optax.GradientTransformation(init, update)


class _AdaptedModel(ModelDef):
    """What an optimizer asks of a model, for `LoraState.trained` in place of the parameters."""

    def __init__(self, model: ModelDef, lora: Lora):
        self._model, self._lora = model, lora

    def shapes(self) -> Params:
        """See `ModelDef.shapes`."""
        return self._replaced(self._model.shapes(), lambda path, _: self._lora.shapes(path))

    def metadata(self, key: str, default: Any = None) -> Params:
        """See `ModelDef.metadata`; adapters are decayed."""

        def of(path: str, _: Any) -> dict[str, Any]:
            matrix = self._lora.matrices[path]
            batch = tuple(matrix.axes[i] for i in matrix.batch)
            axes = {"a": (*batch, "lora_in", "lora"), "b": (*batch, "lora", "lora_out")}
            return {x: {"axes": axes[x], "decay": True}.get(key, default) for x in ("a", "b")}

        return self._replaced(self._model.metadata(key, default), of)

    def layers_above(self) -> Params:
        """See `ModelDef.layers_above`."""

        def of(path: str, above: Any) -> dict[str, Any]:
            if isinstance(above, int):
                return {"a": above, "b": above}
            shapes = self._lora.shapes(path)
            return {x: above.reshape((-1,) + (1,) * (len(shapes[x].shape) - 1)) for x in shapes}

        return self._replaced(self._model.layers_above(), of)

    def _replaced(self, tree: Params, of: Any) -> Params:
        """The tree of what is trained, in which `of` makes the values of adapters."""
        leaves = flatten_dict(tree, sep="/")
        found = {path: leaves[path] for path in self._lora.full}
        for path in self._lora.matrices:
            found |= {f"{path}/{name}": x for name, x in of(path, leaves[path]).items()}
        return unflatten_dict(found, sep="/")


def _match(patterns: Sequence[str], shapes: Mapping[str, Any], key: str) -> set[str]:
    return {p for each in patterns for p in match_paths(each, shapes, _KEY.format(key))}


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    # The default precision of accelerators is less than float32.
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
