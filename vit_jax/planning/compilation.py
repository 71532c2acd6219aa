"""Compiles the training step ahead of time and analyses the compiled program."""

import dataclasses
import math
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.experiment import Experiment, build
from vit_jax.flops import traced_flops
from vit_jax.parallel.mesh import batch_shards
from vit_jax.planning import hlo, kernel_schedules
from vit_jax.planning.collectives import (
    Contents,
    bytes_by_kind,
    find_collectives,
    milliseconds_by_kind,
)
from vit_jax.planning.estimates import estimate, is_kernel
from vit_jax.planning.report import Plan
from vit_jax.planning.topologies import Chip, Slice
from vit_jax.planning.units import demanded_bytes

_LISTED = 10


def make_plan(config: ConfigDict, topology: Slice, variant: str = "") -> Plan:
    """Plans the training step of a config.

    Args:
        config: config of a run; `config.mesh` is laid over the devices as in training.
        topology: devices to compile for.
        variant: variant of the step, where `config.draw` makes several; by default the one with
            the most FLOPs.

    Raises:
        UserError: training would refuse the config on these devices, or an unknown variant.
    """
    variants = build(config, devices=topology.devices, data=False).variants
    work = {each.name: each for each in step_work(config, topology.devices)}
    chosen = variant or max(work.values(), key=lambda each: each.flops).name
    experiment, model_flops = variants.named(chosen).experiment, work[chosen].flops
    start = time.monotonic()
    traced = trace_step(experiment)
    kernel_schedules.forget()
    compiled, error = compile_or_error(traced.lower())
    seconds = time.monotonic() - start

    state, mesh = experiment.abstract_state, experiment.mesh
    contents = Contents(state.params, config.batch_size, batch_shards(mesh))
    return Plan(
        topology=topology.name,
        num_slices=topology.num_slices,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        image_size=experiment.spec.inputs.size,
        remat=config.compute.remat,
        grad_accum_steps=experiment.microbatches.steps,
        variant=chosen,
        draw=[
            {
                "name": each.name,
                "fraction": each.fraction,
                "model_flops_per_device": each.flops / mesh.size,
            }
            for each in work.values()
        ],
        parameter_bytes=local_bytes(state.params),
        optimizer_bytes=local_bytes((state.opt_state, state.ema, state.anchor)),
        model_flops_per_device=model_flops / mesh.size,
        executed_flops_per_device=traced_flops(traced.jaxpr) / mesh.size,
        **memory_fields(compiled, error, topology.chip),
        **_program_fields(compiled, topology, model_flops / mesh.size, contents),
        compile_seconds=seconds,
        error=error,
    )


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one variant of the training step.

    Attributes:
        name: name of the variant; empty where `config.draw` is.
        fraction: fraction of the steps that draw it.
        flops: model FLOPs of a step, over all devices.
    """

    name: str
    fraction: float
    flops: int


def step_work(config: ConfigDict, devices: list[Any] | None = None) -> list[Work]:
    """Counts the model FLOPs of each variant of the training step, without recomputation.

    Args:
        config: config of a run.
        devices: devices of the mesh; None for all.
    """
    variants = build(without_recomputation(config), devices=devices, data=False).variants
    return [
        Work(
            each.name,
            variants.frequency(each),
            traced_flops(trace_step(each.experiment).jaxpr),
        )
        for each in variants
    ]


def trace_step(experiment: Experiment) -> jax.stages.Traced:
    """Traces the training step of an experiment; nothing is computed.

    Args:
        experiment: experiment on any devices, built with or without data.
    """
    return experiment.train_step.trace(
        experiment.abstract_state,
        experiment.abstract_batch,
        *experiment.objective.abstract_constants,
    )


def without_recomputation(config: ConfigDict) -> ConfigDict:
    """Copies a config, with a step that computes nothing twice: the model FLOPs.

    Args:
        config: config of a run.
    """
    plain = config.copy_and_resolve_references()
    plain.compute.remat, plain.grad_accum_steps, plain.token_budget = "none", 1, 0
    if plain.objective.name in ("contrastive", "contrastive_captioning"):
        plain.objective.form = "gathered"  # ring and tiled recompute the logits
    return plain


def local_bytes(tree: Any) -> int:
    """Bytes per device of a tree of arrays or `ShapeDtypeStruct`s with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def compile_or_error(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, str | None]:
    """Compiles a program.

    Args:
        lowered: program for any devices.

    Returns:
        The compiled program and None; or None and the compiler's message where the program does not
        fit into the memory.
    """
    try:
        return lowered.compile(), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error).splitlines()[0]


def memory_fields(
    compiled: jax.stages.Compiled | None, error: str | None, chip: Chip | None
) -> dict[str, Any]:
    """Computes the fields of `Plan` about memory.

    Args:
        compiled: result of `compile_or_error`.
        error: result of `compile_or_error`.
        chip: specifications of a device; None for CPU devices.
    """
    limit = chip.hbm_bytes if chip else None
    if compiled is None:
        return {"fits": False, "hbm_bytes": limit, "peak_hbm_bytes": demanded_bytes(error or "")}
    found = compiled.memory_analysis()
    assert found is not None  # all backends with ahead-of-time compilation have it
    peak = (
        found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.generated_code_size_in_bytes
    )
    return {
        "fits": None if limit is None else peak <= limit,
        "hbm_bytes": limit,
        "peak_hbm_bytes": peak,
        "argument_bytes": found.argument_size_in_bytes,
        "temporary_bytes": found.temp_size_in_bytes,
        "output_bytes": found.output_size_in_bytes,
        "program_bytes": found.generated_code_size_in_bytes,
    }


def _program_fields(
    compiled: jax.stages.Compiled | None, topology: Slice, model_flops: float, contents: Contents
) -> dict[str, Any]:
    """Computes the fields of `Plan` about time and communication."""
    if compiled is None:
        return {}
    module = hlo.Module(compiled.as_text() or "")
    collectives = find_collectives(module, len(topology.devices) // topology.num_slices)
    traffic = {
        "collective_bytes": bytes_by_kind(collectives),
        "collective_bytes_by_contents": contents.total_bytes(collectives),
        "largest_collectives": [contents.describe(c) for c in collectives[:_LISTED]],
    }
    chip = topology.chip
    if chip is None:
        return traffic
    kernels = {v.instruction.name for v in module.visits() if is_kernel(v.instruction)}
    schedules = kernel_schedules.kernel_cycles(kernels)
    found = estimate(module, schedules, chip.hbm_bandwidth / chip.clock)
    seconds = found.cycles / chip.clock
    return {
        **traffic,
        "estimated_compute_ms": 1e3 * seconds,
        "estimated_fraction_of_peak": (
            model_flops / (seconds * chip.peak_flops) if seconds else None
        ),
        "collective_ms": milliseconds_by_kind(
            collectives, chip.link_bandwidth, chip.network_bandwidth
        ),
        "slowest_operations": [
            {"source": name, "ms": 1e3 * cycles / chip.clock}
            for name, cycles in list(found.by_source.items())[:_LISTED]
        ],
        "groups": [
            {
                "name": group.name,
                "ms": 1e3 * group.cycles / chip.clock,
                "memory_ms": 1e3 * group.memory_cycles / chip.clock,
                "bound": group.bound,
            }
            for group in found.groups
        ],
        "unestimated": {
            "collectives": sum(c.times for c in collectives),
            "custom_calls": found.custom_calls,
            "other": found.other,
            "loops": found.loops,
        },
    }
