"""Floating-point operations of a program, counted from its trace.

A multiplication and an addition are two operations. Only matrix products and convolutions count, as
in PaLM (Chowdhery et al. 2022, appendix B): on accelerators the other operations are bound by
memory. Causal attention counts in full.
"""

import math
from typing import Any


def traced_flops(jaxpr: Any) -> int:
    """Counts the FLOPs of a traced program, summed over all devices.

    The body of a loop counts once per iteration, that of a `while` loop, whose number of iterations
    is unknown, once. A `cond` counts as its most expensive branch. Recomputation
    (rematerialisation) counts again.

    Args:
        jaxpr: result of `jax.make_jaxpr`, or `jax.jit(f).trace(...).jaxpr`.

    Example:
        >>> import jax
        >>> a, b = jax.numpy.ones((2, 3)), jax.numpy.ones((3, 4))
        >>> traced_flops(jax.make_jaxpr(jax.numpy.matmul)(a, b))
        48
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
        # The gradient of a strided convolution with respect to its input is a convolution of an
        # input with zeros inserted. The zeros cost nothing.
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
    if name == "shard_map":  # its body is the work of one device
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1
