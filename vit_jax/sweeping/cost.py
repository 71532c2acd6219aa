"""What the training of a variant costs."""

import dataclasses

from vit_jax.errors import UserError
from vit_jax.experiment import build
from vit_jax.planning import topologies
from vit_jax.planning.compilation import make_plan, step_work
from vit_jax.sweeping.variants import Variant


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a run.

    Attributes:
        flops: floating-point operations of all training steps.
        hours: estimated hours on a slice; None where no slice is named, or without an estimate.
    """

    flops: float
    hours: float | None


def training_cost(variant: Variant, topology: str | None) -> Cost:
    """Computes the cost of the training steps of a variant. The data is opened for their number.

    Args:
        variant: variant of a sweep.
        topology: slice to plan for, as v5e:4x4; None for none.

    Raises:
        UserError: training would refuse the config.
    """
    steps = build(variant.config).durations.total
    work = step_work(variant.config)
    mean, largest = sum(x.fraction * x.flops for x in work), max(x.flops for x in work)
    flops = mean * steps
    if topology is None:
        return Cost(flops, None)
    plan = make_plan(variant.config, topologies.find_slice(topology, 1))
    if plan.error is not None:
        raise UserError(f"variant {variant.name!r} on {topology}: {plan.error}")
    milliseconds = plan.estimated_compute_ms
    if milliseconds is None:
        return Cost(flops, None)
    # Where steps differ, that of the plan is the largest.
    return Cost(flops, milliseconds * mean / largest * steps / 3.6e6)
