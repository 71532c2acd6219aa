"""Floating-point operations of a training step, counted from its trace.

As in `model_flops` only matmuls and convolutions count.
"""

import math
from typing import Any


def traced_flops(jaxpr: Any) -> int:
    """FLOPs of everything that a jaxpr does, summed over all devices.

    Loops count as often as they run; of a `cond` the costlier branch; a `while` of unknown length
    once. Repeated work (rematerialisation) counts again.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(result) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        # The input's gradient of a stride is a convolution with zeros between: they cost nothing.
        zeros = math.prod(params["lhs_dilation"])
        return 2 * math.prod(result) * math.prod(kernel) // features // zeros
    inner = [traced_flops(x) for x in _inner_jaxprs(params)]
    if name == "cond":
        return max(inner, default=0)
    return _repetitions(name, params) * sum(inner)


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    for value in params.values():
        values = value if isinstance(value, list | tuple) else [value]
        found += [v for v in values if hasattr(getattr(v, "jaxpr", v), "eqns")]
    return found


def _repetitions(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # what is inside is the work of one device
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1
