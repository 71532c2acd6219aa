"""The result of planning, as a table for people and as JSON for programs."""

import dataclasses
import json
from typing import Any

from vit_jax.planning.units import GIB, format_bytes

TERA = 1e12
Rows = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Resources of one training step. Sizes, FLOPs and times are per device.

    A device is a chip, on TPU7x half a chip. None stands for "unknown".

    Attributes:
        topology: slice, as "v5e:16x16".
        num_slices: number of slices.
        devices: number of devices in all slices.
        mesh: axis -> size.
        batch_size: global batch size, examples.
        image_size: height and width of the model's input, px.
        remat: rematerialisation policy.
        grad_accum_steps: microbatches per batch.
        variant: variant of the step that was compiled; empty where `config.draw` is.
        draw: variants with the fraction of the steps that draw them and their model FLOPs.
        fits: whether the step fits into the memory; None on CPU devices, which have no limit.
        hbm_bytes: memory of a device.
        peak_hbm_bytes: arguments, temporaries, program, and outputs that do not reuse the memory of
            an argument.
        argument_bytes: training state and batch in memory, including padding.
        temporary_bytes: activations, gradients and workspaces.
        output_bytes: results, including those that reuse the memory of an argument.
        program_bytes: compiled code.
        parameter_bytes: parameters, part of the arguments.
        optimizer_bytes: optimizer state and moving average of the parameters, part of the
            arguments.
        model_flops_per_device: FLOPs of a step without recomputation.
        executed_flops_per_device: FLOPs of the compiled step, including recomputation.
        estimated_compute_ms: compiler's estimate of the time, without the parts in `unestimated`.
        estimated_fraction_of_peak: model FLOPs per estimated time, relative to the bfloat16 peak.
        collective_bytes: kind of collective -> bytes that a device receives per step.
        collective_ms: kind of collective -> time at full link speed, without overlap.
        collective_bytes_by_contents: parameters, activations or other -> bytes that a device
            receives per step.
        largest_collectives: largest collectives with shapes, contents and bytes.
        slowest_operations: operations of the model with the largest estimated times.
        groups: kinds of operations with their estimated times, the times of their traffic with HBM
            at full bandwidth, and which of memory and compute limits them.
        unestimated: parts of the step without an estimate: numbers of collectives, custom calls,
            other instructions, and loops of unknown length.
        compile_seconds: time of lowering and compilation.
        error: compiler's message where the step does not fit.
    """

    topology: str
    num_slices: int
    devices: int
    mesh: dict[str, int]
    batch_size: int
    image_size: tuple[int, int]
    remat: str
    grad_accum_steps: int
    variant: str = ""
    draw: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    fits: bool | None
    hbm_bytes: int | None
    peak_hbm_bytes: int | None = None
    argument_bytes: int | None = None
    temporary_bytes: int | None = None
    output_bytes: int | None = None
    program_bytes: int | None = None
    parameter_bytes: int
    optimizer_bytes: int
    model_flops_per_device: float
    executed_flops_per_device: float
    estimated_compute_ms: float | None = None
    estimated_fraction_of_peak: float | None = None
    collective_bytes: dict[str, int] | None = None
    collective_ms: dict[str, float] | None = None
    collective_bytes_by_contents: dict[str, int] | None = None
    largest_collectives: list[dict[str, Any]] | None = None
    slowest_operations: list[dict[str, Any]] | None = None
    groups: list[dict[str, Any]] | None = None
    unestimated: dict[str, Any] | None = None
    compile_seconds: float
    error: str | None = None

    @property
    def recomputation(self) -> float:
        """Executed FLOPs relative to model FLOPs."""
        return self.executed_flops_per_device / self.model_flops_per_device

    def to_json(self) -> str:
        """Returns the fields as one JSON object."""
        return json.dumps(dataclasses.asdict(self))


def table(plan: Plan) -> str:
    """Formats a plan as a table of two columns, with suggestions at the end.

    Args:
        plan: result of `make_plan`.
    """
    slices = f"{plan.num_slices} x " if plan.num_slices > 1 else ""
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    height, width = plan.image_size
    parts = f", {plan.grad_accum_steps} microbatches" if plan.grad_accum_steps > 1 else ""
    rows = [
        ("slice", f"{slices}{plan.topology}: {plan.devices} devices, mesh {mesh}"),
        ("batch", f"{plan.batch_size:,} ({plan.batch_size // plan.devices:,} per device{parts})"),
        ("image", f"{height} x {width} px"),
        *_variant_rows(plan),
        ("", ""),
        (
            "fits",
            {True: "yes", False: "NO", None: "unknown (CPU devices have no limit)"}[plan.fits],
        ),
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


def _variant_rows(plan: Plan) -> Rows:
    """The variant that is planned, and the work of all."""
    if not plan.variant:
        return []
    mean = sum(each["fraction"] * each["model_flops_per_device"] for each in plan.draw)
    return [
        ("variant", f"{plan.variant} of {len(plan.draw)}; --variant plans another one"),
        *(
            (
                f"  {each['name']}",
                f"{each['model_flops_per_device'] / TERA:.3f} T per device in "
                f"{each['fraction']:.0%} of the steps",
            )
            for each in plan.draw
        ),
        ("  mean", f"{mean / TERA:.3f} T per device"),
    ]


def _memory_rows(plan: Plan) -> Rows:
    limit = f" of {plan.hbm_bytes / GIB:.0f} GiB" if plan.hbm_bytes else ""
    return [
        ("peak HBM", format_bytes(plan.peak_hbm_bytes) + limit),
        ("  arguments", format_bytes(plan.argument_bytes)),
        ("    parameters", format_bytes(plan.parameter_bytes)),
        ("    optimizer", format_bytes(plan.optimizer_bytes)),
        ("  temporaries", format_bytes(plan.temporary_bytes)),
        ("  program", format_bytes(plan.program_bytes)),
    ]


def _compute_rows(plan: Plan) -> Rows:
    flops = plan.model_flops_per_device / TERA
    rows = [
        ("model FLOPs", f"{flops:.3f} T per device (executed: {plan.recomputation:.2f} times)"),
    ]
    if plan.estimated_compute_ms is None:
        return [*rows, ("compute time", "not estimated")]
    fraction = plan.estimated_fraction_of_peak
    rows.append(("compute time", f"{plan.estimated_compute_ms:.1f} ms (compiler's estimate)"))
    rows.append(("of peak FLOP/s", "unknown" if fraction is None else f"{fraction:.1%}"))
    rows += [
        (
            f"  {each['name']}",
            f"{each['ms']:.1f} ms, HBM {each['memory_ms']:.1f} ms: {each['bound']}",
        )
        for each in plan.groups or []
        if each["ms"] >= 0.05
    ]
    exchange = sum((plan.collective_ms or {}).values())
    whole = plan.estimated_compute_ms + exchange
    rows.append(
        ("step time", f"{plan.estimated_compute_ms:.1f} to {whole:.1f} ms (exchange hidden or not)")
    )
    return rows + [
        ("  slowest", f"{each['ms']:.1f} ms  {each['source']}")
        for each in (plan.slowest_operations or [])[:5]
    ]


def _collective_rows(plan: Plan) -> Rows:
    if plan.collective_bytes is None:
        return [("collectives", "unknown")]
    rows = [("collectives", "" if plan.collective_bytes else "none")]
    for kind, size in sorted(plan.collective_bytes.items(), key=lambda item: -item[1]):
        time = f", {plan.collective_ms[kind]:.2f} ms" if plan.collective_ms else ""
        rows.append((f"  {kind}", f"{format_bytes(size)}{time}"))
    for contents, size in (plan.collective_bytes_by_contents or {}).items():
        rows.append((f"  of {contents}", format_bytes(size)))
    for each in (plan.largest_collectives or [])[:3]:
        shapes = " ".join("x".join(map(str, shape)) for shape in each["shapes"][:2])
        more = " ..." if len(each["shapes"]) > 2 else ""
        text = f"{each['kind']} of {each['contents']} {shapes}{more}, {each['times']} times"
        rows.append(("  largest", f"{text}, {format_bytes(each['bytes'])}"))
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
    """Suggests changes of the config.

    Args:
        plan: result of `make_plan`.

    Returns:
        Flags with an explanation; none where the step fits and fills at least half the memory.
    """
    if plan.fits is False:
        return _to_save_memory(plan)
    if not plan.fits or plan.peak_hbm_bytes is None or plan.hbm_bytes is None:
        return []
    if plan.peak_hbm_bytes > 0.5 * plan.hbm_bytes or not plan.temporary_bytes:
        return []
    return _to_use_memory(plan, plan.peak_hbm_bytes, plan.temporary_bytes, plan.hbm_bytes)


def _to_save_memory(plan: Plan) -> list[str]:
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    tips = []
    if plan.remat != "full":
        policy = "full" if plan.remat == "dots" else "dots"
        tips.append(f"--config.compute.remat={policy}: keeps fewer activations")
    tips.append(
        f"--config.grad_accum_steps={2 * plan.grad_accum_steps}: halves the activations; the loss "
        "still sees the whole batch"
    )
    if plan.batch_size // shards > 1:
        tips.append(f"--config.batch_size={plan.batch_size // shards // 2 * shards}")
    if plan.mesh["fsdp"] == 1 and plan.devices > plan.num_slices:
        size = plan.devices // plan.num_slices
        tips.append(f"--config.mesh.fsdp={size}: shards parameters and optimizer state")
    return tips


def _to_use_memory(plan: Plan, peak: int, temporary: int, limit: int) -> list[str]:
    # Temporaries are proportional to the batch; the rest is constant. A tenth is kept free for
    # fragmentation.
    factor = (0.9 * limit - (peak - temporary)) / temporary
    tips = []
    repeated = plan.recomputation - 1
    if plan.remat != "none" and repeated > 0.05:
        policy = "dots" if plan.remat == "full" else "none"
        tips.append(f"--config.compute.remat={policy}: {repeated:.0%} of the work is recomputation")
    if factor >= 2:
        power = 2 ** (int(factor).bit_length() - 1)
        tips.append(f"--config.batch_size={plan.batch_size * power}, if the recipe allows")
    return tips
