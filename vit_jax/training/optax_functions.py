"""Optimizers of optax, and of any other module, as components of `config.optim`.

A function that takes `learning_rate` is a whole optimizer, as `optax.adabelief`; it gets the
schedule. One that does not is a transformation of gradients, as `optax.scale_by_yogi`; the learning
rate follows it. Its other parameters are keys of the block.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import optax
from optax import contrib

from vit_jax.models.definition import ModelDef
from vit_jax.training.schedules import Schedule

# Parameters that are set from elsewhere: the schedule, the shared key, the model's metadata.
_SET = ("learning_rate", "weight_decay")
_MASKS = ("mask", "weight_decay_mask")
# Their update reads the loss, which the training step does not pass.
_NEED_LOSS = ("lbfgs", "momo", "momo_adam", "scale_by_lbfgs")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class OptaxFunction:
    """Base class of the dataclasses that `component` makes."""

    function: Callable[..., optax.GradientTransformation]
    takes_schedule: bool

    def build(
        self, model: ModelDef, weight_decay: float, schedule: Schedule | None = None
    ) -> optax.GradientTransformation:
        """Builds the optimizer.

        Weight decay is the function's own where it has a parameter `weight_decay`. Elsewhere it is
        decoupled: it follows the function, multiplied by the learning rate.

        Args:
            model: its metadata say which parameters are decayed.
            weight_decay: factor of the decay.
            schedule: step -> learning rate, if `takes_schedule`.
        """
        arguments = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        }
        parameters, decay = _parameters(self.function), model.metadata("decay")
        if schedule is not None:
            arguments["learning_rate"] = schedule
        if "weight_decay" in parameters:
            mask = next((name for name in _MASKS if name in parameters), None)
            arguments["weight_decay"] = weight_decay
            return self.function(**arguments, **({mask: decay} if mask else {}))
        transform = self.function(**arguments)
        if not weight_decay:
            return transform
        factor: Any = weight_decay
        if schedule is not None:
            factor = lambda step: -weight_decay * schedule(step)  # noqa: E731
        return optax.chain(transform, optax.add_decayed_weights(factor, decay))


def component(name: str, function: Callable[..., Any]) -> type[OptaxFunction]:
    """Dataclass of a function's keys that builds its optimizer.

    Args:
        name: name of the function in configs.
        function: returns an `optax.GradientTransformation`.
    """
    fields: list[tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in (*_SET, *_MASKS) or parameter.kind in _VARIADIC:
            continue
        is_required = parameter.default is parameter.empty
        default = (
            dataclasses.field() if is_required else dataclasses.field(default=parameter.default)
        )
        fields.append((parameter.name, Any, default))
    return dataclasses.make_dataclass(
        name.rpartition(":")[2],
        fields,
        bases=(OptaxFunction,),
        namespace={
            "function": staticmethod(function),
            "takes_schedule": "learning_rate" in _parameters(function),
        },
        frozen=True,
        kw_only=True,
    )


def find(name: str) -> Callable[..., optax.GradientTransformation] | None:
    """The optimizer or transformation of optax with a name; None if there is none."""
    return _functions().get(name)


def names() -> list[str]:
    """Optimizers of optax, by name."""
    return sorted(_functions())


@functools.cache
def _functions() -> dict[str, Callable[..., optax.GradientTransformation]]:
    return {
        name: function
        for module in (contrib, optax)  # on equal names, the stable one
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name not in ("scale_by_learning_rate", *_NEED_LOSS)
        and (name.startswith("scale_by_") or "learning_rate" in _parameters(function))
    }


def _parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)
