"""Time of a recipe's training step on this machine, with random batches.

    python benchmarks/step_time.py --config configs/clip_emoji.py [--config.key=value ...]

Prints one JSON object: median wall milliseconds and CPU milliseconds of a step, examples a second
and minor page faults a step. Run two settings in turn to compare them; single runs drift.
"""

import json
import resource
import statistics
import time

from absl import flags
from ml_collections import config_flags

from vit_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps to time.", lower_bound=1)
flags.mark_flag_as_required("config")


def main() -> None:
    """Compiles the step, runs it and prints its time."""
    import jax

    from vit_jax.training import assembly

    config = _CONFIG.value
    mesh = assembly.build_mesh(config)
    program = assembly.build_program(config, mesh, warmup_steps=1, total_steps=1000)
    batch = assembly.random_batch(config, mesh)
    state = program.init()
    constants = program.load_constants()
    state, metrics = program.step(state, batch, *constants)
    jax.block_until_ready(metrics)

    before, walls = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(_STEPS.value):
        start = time.perf_counter()
        state, metrics = program.step(state, batch, *constants)
        jax.block_until_ready(metrics)
        walls.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = statistics.median(walls)
    figures = {
        "wall_ms": round(wall * 1e3, 1),
        "cpu_ms": round(cpu / _STEPS.value * 1e3, 1),
        "examples_per_second": round(config.batch_size / wall, 1),
        "page_faults": round((after.ru_minflt - before.ru_minflt) / _STEPS.value),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    cli.run(main)
