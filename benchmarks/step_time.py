"""Time of a recipe's training step on this machine, with random batches.

    python benchmarks/step_time.py --config configs/clip_emoji.py [--config.key=value ...]

Prints one JSON object: median wall milliseconds and CPU milliseconds of a step, examples a second
and minor page faults a step. Run two settings in turn to compare them; single runs drift.
"""

import json
import resource
import statistics

from absl import flags
from ml_collections import config_flags

from vit_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps to time.", lower_bound=1)
flags.mark_flag_as_required("config")


def main() -> None:
    """Compiles the step, runs it and prints its time."""
    from timed_step import TimedStep

    config = _CONFIG.value
    step = TimedStep(config)
    before = resource.getrusage(resource.RUSAGE_SELF)
    walls = [step() for _ in range(_STEPS.value)]
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
