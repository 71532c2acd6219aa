"""The result of planning: one dataclass, as a table to read and as JSON to compare."""

import dataclasses
import json
from typing import Any

GIB, TERA = 2**30, 1e12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a step takes, a device (TPU7x: half a chip; elsewhere: a chip). None: not known.

    Attributes:
        topology: slice, as "v5e:16x16".
        num_slices: such slices.
        devices: in all.
        mesh: axis -> size.
        batch_size: global.
        remat: policy that was compiled.
        grad_accum_steps: parts in which the batch goes through the towers.
        fits: whether it compiles within the memory; None on CPU devices, which have no limit.
        hbm_bytes: a device's memory.
        peak_hbm_bytes: arguments, temporaries, outputs that reuse no argument, and the program.
        argument_bytes: state and batch as they lie in memory, padding included.
        temporary_bytes: activations, gradients and what else lives within a step.
        output_bytes: results, those that take an argument's place included.
        program_bytes: the compiled code.
        parameter_bytes: of the arguments.
        optimizer_bytes: of the arguments, with the moving average of the weights.
        model_flops_per_chip: of a step, without what rematerialisation repeats.
        model_flops_source: "analytic", or "traced" for architectures without a formula.
        traced_flops_per_chip: the same, counted from the traced step.
        executed_flops_per_chip: traced, with what rematerialisation repeats.
        estimated_compute_ms: the compiler's own estimate of everything but `unestimated`.
        estimated_share_of_peak: model FLOPs in this time over the peak (bfloat16).
        collective_bytes: kind -> bytes that a device receives in a step.
        collective_ms: kind -> their time at link speed, one after the other.
        collective_contents: parameters, activations, others -> their part of these bytes.
        largest_collectives: the largest, with shapes and what they carry.
        slowest: operations of the model with the largest parts of the estimated time.
        unestimated: what `estimated_compute_ms` leaves out.
        compile_seconds: lowering and compilation.
        error: the compiler's message where it does not fit.
    """

    topology: str
    num_slices: int
    devices: int
    mesh: dict[str, int]
    batch_size: int
    remat: str
    grad_accum_steps: int
    fits: bool | None
    hbm_bytes: int | None
    peak_hbm_bytes: int | None
    argument_bytes: int | None
    temporary_bytes: int | None
    output_bytes: int | None
    program_bytes: int | None
    parameter_bytes: int
    optimizer_bytes: int
    model_flops_per_chip: float
    model_flops_source: str
    traced_flops_per_chip: float
    executed_flops_per_chip: float
    estimated_compute_ms: float | None
    estimated_share_of_peak: float | None
    collective_bytes: dict[str, float] | None
    collective_ms: dict[str, float] | None
    collective_contents: dict[str, float] | None
    largest_collectives: list[dict[str, Any]] | None
    slowest: list[dict[str, Any]] | None
    unestimated: dict[str, Any] | None
    compile_seconds: float
    error: str | None

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self))


def table(plan: Plan) -> str:
    """The plan as a table of two columns, and what to try next."""
    slices = f"{plan.num_slices} x " if plan.num_slices > 1 else ""
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    rows = [
        ("slice", f"{slices}{plan.topology}: {plan.devices} devices, mesh {mesh}"),
        ("batch", f"{plan.batch_size:,} ({plan.batch_size // plan.devices:,} a device)"),
        ("", ""),
        ("fits", {True: "yes", False: "NO", None: "not known (no limit on CPU)"}[plan.fits]),
        *_memory_rows(plan),
        ("", ""),
        *_compute_rows(plan),
        ("", ""),
        *_collective_rows(plan),
        ("not estimated", _unestimated(plan.unestimated)),
        ("compiled in", f"{plan.compile_seconds:.0f} s"),
    ]
    if plan.error:
        rows.append(("compiler", plan.error))
    rows += [("try", text) for text in suggestions(plan)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def _memory_rows(plan: Plan) -> list[tuple[str, str]]:
    of = f" of {plan.hbm_bytes / GIB:.0f} GiB" if plan.hbm_bytes else ""
    return [
        ("peak HBM", _bytes(plan.peak_hbm_bytes) + of),
        ("  arguments", _bytes(plan.argument_bytes)),
        ("    parameters", _bytes(plan.parameter_bytes)),
        ("    optimizer", _bytes(plan.optimizer_bytes)),
        ("  temporaries", _bytes(plan.temporary_bytes)),
        ("  program", _bytes(plan.program_bytes)),
    ]


def _compute_rows(plan: Plan) -> list[tuple[str, str]]:
    repeated = plan.executed_flops_per_chip / plan.traced_flops_per_chip
    rows = [
        (
            "model FLOPs",
            f"{plan.model_flops_per_chip / TERA:.3f} T a device ({plan.model_flops_source}; "
            f"executed: {repeated:.2f} times as many)",
        )
    ]
    if plan.estimated_compute_ms is None:
        return [*rows, ("compute time", "not estimated")]
    share = plan.estimated_share_of_peak
    rows.append(("compute time", f"{plan.estimated_compute_ms:.1f} ms (compiler's estimate)"))
    rows.append(("share of peak", "not known" if share is None else f"{share:.1%}"))
    return rows + [
        ("  slowest", f"{each['ms']:.1f} ms  {each['source']}") for each in (plan.slowest or [])[:5]
    ]


def _collective_rows(plan: Plan) -> list[tuple[str, str]]:
    if plan.collective_bytes is None:
        return [("collectives", "not known")]
    rows = [("collectives", "" if plan.collective_bytes else "none")]
    for kind, size in sorted(plan.collective_bytes.items(), key=lambda item: -item[1]):
        time = f", {plan.collective_ms[kind]:.2f} ms" if plan.collective_ms else ""
        rows.append((f"  {kind}", f"{_bytes(size)}{time}"))
    for content, size in (plan.collective_contents or {}).items():
        rows.append((f"  of {content}", _bytes(size)))
    for each in (plan.largest_collectives or [])[:3]:
        shapes = " ".join("x".join(map(str, shape)) for shape in each["shapes"][:2])
        more = " ..." if len(each["shapes"]) > 2 else ""
        text = f"{each['kind']} of {each['carries']} {shapes}{more}, {each['times']} times"
        rows.append(("  largest", f"{text}, {_bytes(each['bytes'])}"))
    return rows


def _unestimated(found: dict[str, Any] | None) -> str:
    if found is None:
        return "everything"
    parts = [f"{n} collectives" for n in [found["collectives"]] if n]
    parts += [f"{n} {name}" for name, n in found["custom_calls"].items()]
    parts += [f"{n} {name}" for name, n in found["other"].items()]
    parts += [f"length of {n} loops (counted once)" for n in [found["loops"]] if n]
    return ", ".join(parts) or "nothing"


def suggestions(plan: Plan) -> list[str]:
    """What to change where the step does not fit, or leaves most of the memory free."""
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    if plan.fits is False:
        tips = []
        if plan.remat != "full":
            less = "full" if plan.remat == "dots" else "dots"
            tips.append(f"--config.compute.remat={less}: keeps less")
        parts = 2 * plan.grad_accum_steps
        tips.append(f"--config.grad_accum_steps={parts}: half the activations, all negatives kept")
        if plan.batch_size // shards > 1:
            half = plan.batch_size // shards // 2 * shards
            tips.append(f"--config.batch_size={half}")
        if plan.mesh["fsdp"] == 1 and plan.devices > plan.num_slices:
            inner = plan.devices // plan.num_slices
            tips.append(f"--config.mesh.fsdp={inner}: parameters and optimizer split")
        return tips
    if not plan.fits or plan.peak_hbm_bytes is None or plan.hbm_bytes is None:
        return []
    if plan.peak_hbm_bytes > 0.5 * plan.hbm_bytes or not plan.temporary_bytes:
        return []
    # Temporaries grow with the batch, the rest does not; a tenth is left for fragmentation.
    room = 0.9 * plan.hbm_bytes - (plan.peak_hbm_bytes - plan.temporary_bytes)
    factor = room / plan.temporary_bytes
    tips = []
    repeated = plan.executed_flops_per_chip / plan.traced_flops_per_chip - 1
    if plan.remat != "none" and repeated > 0.05:
        lighter = "dots" if plan.remat == "full" else "none"
        tips.append(f"--config.compute.remat={lighter}: {repeated:.0%} of the work is repeated")
    if factor >= 2:
        power = 2 ** (int(factor).bit_length() - 1)
        tips.append(f"--config.batch_size={plan.batch_size * power}, if the recipe allows")
    return tips


def _bytes(size: float | None) -> str:
    if size is None:
        return "not known"
    for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"
