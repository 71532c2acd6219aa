"""What the training of a variant costs."""

import dataclasses

from vit_jax.errors import UserError
from vit_jax.experiment import build
from vit_jax.flops import traced_flops
from vit_jax.planning import topologies
from vit_jax.planning.compilation import make_plan, trace_step, without_recomputation
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
    plain = build(without_recomputation(variant.config), data=False)
    flops = float(traced_flops(trace_step(plain).jaxpr)) * steps
    if topology is None:
        return Cost(flops, None)
    plan = make_plan(variant.config, topologies.find_slice(topology, 1))
    if plan.error is not None:
        raise UserError(f"variant {variant.name!r} on {topology}: {plan.error}")
    milliseconds = plan.estimated_compute_ms
    return Cost(flops, None if milliseconds is None else milliseconds * steps / 3.6e6)
