"""Time of a recipe's training step on this machine, with random batches.

    python benchmarks/step_time.py --config configs/clip_emoji.py [--config.key=value ...]

Prints one JSON object: median wall milliseconds and CPU milliseconds per step, examples per second
and minor page faults per step. To compare two settings, run them alternately: single runs drift.
"""

import json
import resource
import statistics

from absl import flags

from vit_jax import cli

_CONFIG = cli.define_config()
_STEPS = flags.DEFINE_integer("steps", 20, "Number of timed steps.", lower_bound=1)


def main() -> None:
    """Compiles the step, times it and prints the result."""
    from timed_step import TimedStep

    config = cli.load_config(str(_CONFIG.value))
    step = TimedStep(config)
    before = resource.getrusage(resource.RUSAGE_SELF)
    walls = [step() for _ in range(_STEPS.value)]
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = statistics.median(walls)
    result = {
        "wall_ms": round(wall * 1e3, 1),
        "cpu_ms": round(cpu / _STEPS.value * 1e3, 1),
        "examples_per_second": round(config.batch_size / wall, 1),
        "page_faults": round((after.ru_minflt - before.ru_minflt) / _STEPS.value),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
