"""Compiles the very step that trains and measures it."""

import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax import flops
from vit_jax.parallel.mesh import batch_shards, make_mesh
from vit_jax.planning import hlo
from vit_jax.planning.collectives import bytes_by_kind, find_collectives, milliseconds_by_kind
from vit_jax.planning.contents import Contents
from vit_jax.planning.model_flops import training_flops
from vit_jax.planning.report import Plan
from vit_jax.planning.topologies import Slice
from vit_jax.training import assembly

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LISTED = 10
_TIME_AND_TRAFFIC = (
    "estimated_compute_ms",
    "estimated_share_of_peak",
    "collective_bytes",
    "collective_ms",
    "collective_contents",
    "largest_collectives",
    "slowest",
    "unestimated",
)


def make_plan(config: ConfigDict, where: Slice) -> Plan:
    """Plans a config's training step.

    Args:
        config: of a run; `config.mesh` is laid over the slice as in training.
        where: the devices.

    Raises:
        UserError: a config that training would refuse on these devices.
    """
    config_lib.validate(config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=where.devices)
    assembly.check_batch_sizes(config, mesh)
    program = _program(config, mesh)
    batch = assembly.batch_shapes(config)

    start = time.monotonic()
    traced = program.step.trace(program.abstract, batch, *program.abstract_constants)
    compiled, error = _compile(traced.lower())
    seconds = time.monotonic() - start

    executed = flops.traced_flops(traced.jaxpr)
    counted = flops.traced_flops(_trace_without_repetition(config, mesh))
    analytic = training_flops(program.model.architecture, config.batch_size)
    model_flops = (counted if analytic is None else analytic) / mesh.size
    hbm_bytes = where.chip.hbm_bytes if where.chip else None
    return Plan(
        topology=where.name,
        num_slices=where.num_slices,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        remat=config.compute.remat,
        grad_accum_steps=config.grad_accum_steps,
        hbm_bytes=hbm_bytes,
        **_memory(compiled, error, hbm_bytes),
        parameter_bytes=local_bytes(program.abstract.params),
        optimizer_bytes=local_bytes((program.abstract.opt_state, program.abstract.ema)),
        model_flops_per_chip=model_flops,
        model_flops_source="traced" if analytic is None else "analytic",
        traced_flops_per_chip=counted / mesh.size,
        executed_flops_per_chip=executed / mesh.size,
        **_time_and_traffic(
            compiled,
            where,
            model_flops,
            Contents(program.abstract.params, config.batch_size, batch_shards(mesh)),
        ),
        compile_seconds=seconds,
        error=error,
    )


def local_bytes(tree: Any) -> int:
    """Bytes that one device holds of arrays, or of `ShapeDtypeStruct`s with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _program(config: ConfigDict, mesh: Mesh) -> assembly.Program:
    # The schedule's lengths follow from the data, which planning does not open; they are constants
    # of the program, of no influence on what it takes.
    return assembly.build_program(config, mesh, warmup_steps=1, total_steps=1000, resumed=True)


def _trace_without_repetition(config: ConfigDict, mesh: Mesh) -> Any:
    """The step's jaxpr with nothing rematerialised: no policy, no accumulation, no ring."""
    plain = config.copy_and_resolve_references()
    plain.compute.remat, plain.grad_accum_steps, plain.objective.form = "none", 1, "gathered"
    program = _program(plain, mesh)
    batch = assembly.batch_shapes(plain)
    return program.step.trace(program.abstract, batch, *program.abstract_constants).jaxpr


def _compile(lowered: Any) -> tuple[Any, str | None]:
    """The compiled step, or None and the compiler's message where memory does not suffice."""
    try:
        return lowered.compile(), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error).splitlines()[0]


def _memory(compiled: Any, error: str | None, hbm_bytes: int | None) -> dict[str, Any]:
    """The fields of `Plan` on memory."""
    if compiled is None:
        unknown = dict.fromkeys(
            ("argument_bytes", "temporary_bytes", "output_bytes", "program_bytes")
        )
        return {"fits": False, "peak_hbm_bytes": demanded_bytes(error or ""), **unknown}
    found = compiled.memory_analysis()
    peak = (
        found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.generated_code_size_in_bytes
    )
    return {
        "fits": None if hbm_bytes is None else peak <= hbm_bytes,
        "peak_hbm_bytes": peak,
        "argument_bytes": found.argument_size_in_bytes,
        "temporary_bytes": found.temp_size_in_bytes,
        "output_bytes": found.output_size_in_bytes,
        "program_bytes": found.generated_code_size_in_bytes,
    }


def demanded_bytes(message: str) -> int | None:
    """The memory that the compiler asked for in vain, from its message; None if it is silent."""
    found = re.search(
        r"\(([\d.]+)([KMGT]?)i?B?\) exceeds available|Used ([\d.]+)([KMGT]?)i?B? of", message
    )
    if found is None:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * _UNITS[unit])


def _time_and_traffic(
    compiled: Any, where: Slice, model_flops: float, contents: Contents
) -> dict[str, Any]:
    """The fields of `Plan` on time and collectives, read off the compiled program."""
    unknown: dict[str, Any] = dict.fromkeys(_TIME_AND_TRAFFIC)
    if compiled is None:
        return unknown
    module = hlo.Module(compiled.as_text())
    collectives = find_collectives(module, len(where.devices) // where.num_slices)
    traffic = {
        "collective_bytes": bytes_by_kind(collectives),
        "collective_contents": contents.bytes_by_content(collectives),
        "largest_collectives": [contents.describe(c) for c in collectives[:_LISTED]],
    }
    chip = where.chip
    if chip is None:
        return {**unknown, **traffic}
    estimate = hlo.estimate(module)
    seconds = estimate.cycles / chip.clock
    return {
        **traffic,
        "estimated_compute_ms": 1e3 * seconds,
        "estimated_share_of_peak": model_flops / (seconds * chip.peak_flops) if seconds else None,
        "collective_ms": milliseconds_by_kind(
            collectives, chip.link_bandwidth, chip.network_bandwidth
        ),
        "slowest": [
            {"source": name, "ms": 1e3 * cycles / chip.clock}
            for name, cycles in list(estimate.by_source.items())[:_LISTED]
        ],
        "unestimated": {
            "collectives": sum(c.times for c in collectives),
            "custom_calls": estimate.custom_calls,
            "other": estimate.other,
            "loops": estimate.loops,
        },
    }
