"""Compares two estimates of TPU fusions: the compiler's own, and the bundles of their schedules.

    python -m benchmarks.kernel_schedules --config configs/siglip_b16.py --topology v5e:2x2

`vit_jax.plan` reads schedules of kernels, which have no other estimate. Fusions have both.
Needs libtpu (`pip install 'vit_jax[plan]'`) and no TPU.
"""

import numpy as np
from absl import flags

from vit_jax import cli

_CONFIG = cli.define_config()
_MIN_CYCLES = 10_000  # smaller fusions are mostly overhead
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Slice to compile for.")


def main() -> None:
    """Prints the ratio of bundles to estimated cycles, by kind of fusion."""
    from vit_jax.experiment import build
    from vit_jax.planning import compilation, estimates, hlo, kernel_schedules, topologies

    config = cli.load_config(str(_CONFIG.value))
    topologies.prepare_platform(str(_TOPOLOGY.value))
    topology = topologies.find_slice(str(_TOPOLOGY.value))
    assert topology.chip is not None  # a TPU
    experiment = build(config, devices=topology.devices, data=False)
    compiled = compilation.trace_step(experiment).lower().compile()
    module = hlo.Module(compiled.as_text() or "")
    visits = [visit for visit in module.visits() if not visit.fused]
    bundles = kernel_schedules.kernel_cycles({visit.instruction.name for visit in visits})
    per_cycle = topology.chip.hbm_bandwidth / topology.chip.clock
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for visit in visits:
        instruction = visit.instruction
        cycles = estimates.compiler_cycles(instruction) or 0
        if instruction.name not in bundles or cycles < _MIN_CYCLES:
            continue
        traffic = estimates.hbm_bytes(instruction, module.computations[visit.computation])
        kind = estimates.kind(module, instruction)
        bound = estimates.Group(kind, cycles, traffic / per_cycle).bound
        rows.setdefault((kind, bound), []).append((cycles, bundles[instruction.name]))
    print(f"{'fusions':<28} {'number':>6}  {'all':>5}  {'10%':>5} {'50%':>5} {'90%':>5}")
    for (kind, bound), pairs in sorted(rows.items(), key=lambda item: -sum(p[0] for p in item[1])):
        estimated, scheduled = np.asarray(pairs).T
        low, middle, high = np.quantile(scheduled / estimated, (0.1, 0.5, 0.9))
        total = scheduled.sum() / estimated.sum()
        name = f"{kind}, bound by {bound}"
        print(f"{name:<28} {len(pairs):>6}  {total:>5.2f}  {low:>5.2f} {middle:>5.2f} {high:>5.2f}")


if __name__ == "__main__":
    cli.run(main)
