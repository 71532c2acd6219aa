"""Several objectives in one step: the sum of their losses, with weights that may change."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.components import describe_type, matches
from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.objectives import OBJECTIVES
from vit_jax.objectives.base import PROGRESS, Batch, Context, Metrics, Objective

# A weight, or points (progress, weight) between which it is linear.
Weight = float | tuple[tuple[float, float], ...]


class WeightedSum(Objective):
    """Sum of the losses of several objectives on the same batch.

    Each part runs the model for itself. Losses that share a forward pass are one objective, as
    `contrastive_captioning`. Every key of randomness differs between the parts.

    Metrics: `<part>/loss`, unweighted, `<part>/weight` where it changes, and `<part>/<metric>`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective.

        Attributes:
            parts: label of each part -> its keys, `name` (by default the label) and `weight` (by
                default 1): a number, or pairs of progress and weight, between which the weight is
                linear. Progress is 0 at the first step and 1 at the end of training, as
                `((0.8, 0.0), (0.8, 1.0))` for a part that starts after 80%. Held-out losses have
                the last weight. A part of the weight 0 is not built: a stage without it reads and
                computes nothing for it.
        """

        parts: Mapping[str, Any]

        def __post_init__(self) -> None:
            """Completes the parts with the defaults of their keys."""
            if not self.parts:
                raise UserError(f"{_PATH} is empty: expected objectives, as {_PATH}.NAME = {{}}")
            full = {}
            for label, block in self.parts.items():
                name, weight, _, keys = _select(label, block)
                full[label] = {"name": name, "weight": weight, **dataclasses.asdict(keys)}
            object.__setattr__(self, "parts", full)

    fields: tuple[str, ...]  # type: ignore[misc]  # depends on the parts
    is_mean_over_examples: bool  # type: ignore[misc]

    def __init__(self, config: Config, context: Context):
        """Builds the parts.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: an invalid weight, or see the parts.
        """
        super().__init__(config, context)
        self.parts: dict[str, tuple[Weight, Objective]] = {}
        for label, block in config.parts.items():
            _, weight, component, keys = _select(label, block)
            if weight != 0:
                self.parts[label] = weight, component(keys, context)
        objectives = [objective for _, objective in self.parts.values()]
        self.fields = tuple(dict.fromkeys(field for each in objectives for field in each.fields))
        self.other_tokens = {k: v for each in objectives for k, v in each.other_tokens.items()}
        self.is_mean_over_examples = all(each.is_mean_over_examples for each in objectives)
        self.reads_state = tuple(
            dict.fromkeys(part for each in objectives for part in each.reads_state)
        )

    @property
    def abstract_constants(self) -> tuple[Params, ...]:  # type: ignore[override]
        """`ShapeDtypeStruct`s of the parameters of other models, of one part after the other."""
        return tuple(x for _, part in self.parts.values() for x in part.abstract_constants)

    def load_constants(self) -> tuple[Params, ...]:
        """Reads the parameters of other models."""
        return tuple(x for _, part in self.parts.values() for x in part.load_constants())

    def renews_anchor(self, step: Int[Array, ""], total_steps: int) -> Bool[Array, ""]:
        """Whether one of the parts renews the anchor, which they share."""
        readers = [each for _, each in self.parts.values() if "anchor" in each.reads_state]
        return jnp.any(jnp.stack([each.renews_anchor(step, total_steps) for each in readers]))

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch, which has the fields of all parts."""
        total: jax.Array = jnp.zeros(())
        metrics: Metrics = {}
        rest, progress = list(constants), batch.get(PROGRESS, jnp.ones(()))
        state = {name: rest.pop(0) for name in self.reads_state}
        for i, (label, (weight, part)) in enumerate(self.parts.items()):
            count = len(part.abstract_constants)
            own = [*(state[name] for name in part.reads_state), *rest[:count]]
            rest = rest[count:]
            if rng is None:
                loss, found = part.evaluate(model, batch, *own)
            else:
                loss, found = part(model, batch, jax.random.fold_in(rng, i), *own)
            if isinstance(weight, tuple):
                metrics[f"{label}/weight"] = factor = weight_at(weight, progress)
            else:
                factor = jnp.asarray(weight, jnp.float32)
            total += factor * loss
            metrics[f"{label}/loss"] = loss
            metrics |= {f"{label}/{name}": value for name, value in found.items()}
        return total, metrics


def weight_at(
    points: tuple[tuple[float, float], ...], progress: Float[Array, ""]
) -> Float[Array, ""]:
    """Interpolates a weight.

    Args:
        points: pairs of progress and weight, ordered by progress. Of two pairs with equal progress
            the second one applies from there on.
        progress: fraction of training that is done.
    """
    at, values = (jnp.asarray(x, jnp.float32) for x in zip(*points, strict=True))
    after = jnp.searchsorted(at, progress, side="right")
    low, high = jnp.clip(jnp.stack([after - 1, after]), 0, len(points) - 1)
    width = at[high] - at[low]
    fraction = jnp.where(width > 0, (progress - at[low]) / jnp.where(width > 0, width, 1), 0)
    return values[low] + fraction * (values[high] - values[low])


_PATH = "config.objective.parts"


def _select(label: str, block: Any) -> tuple[str, Weight, Any, Any]:
    """Name, weight, class and parsed keys of a part."""
    path = f"{_PATH}.{label}"
    if not isinstance(block, Mapping):
        raise UserError(f"{path}={block!r}: expected the keys of an objective")
    fields = {"name": label, **block}
    weight = fields.pop("weight", 1.0)
    if not isinstance(weight, int | float):
        weight = tuple(tuple(point) if isinstance(point, list) else point for point in weight)
        ordered = matches(weight, tuple[tuple[float, float], ...]) and (
            [at for at, _ in weight] == sorted(at for at, _ in weight)
        )
        if not weight or not ordered:
            raise UserError(
                f"{path}.weight={weight!r}: expected {describe_type(float)}, or pairs of progress "
                "and weight in the order of progress, as ((0.0, 0.0), (1.0, 1.0))"
            )
    component, keys = OBJECTIVES.select(fields, path)
    return fields["name"], weight, component, keys
