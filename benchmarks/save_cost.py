"""What a checkpoint costs the steps that run while it is written.

    python benchmarks/save_cost.py --config configs/clip_emoji.py [--config.key=value ...]

Prints one JSON object: median milliseconds of a step while a save is under way and of one without,
in turns within one run, their ratio, the milliseconds for which `save` holds up the loop, and those
of a whole save, read back. Batches are random.
"""

import json
import statistics
import tempfile
import time

from absl import flags
from ml_collections import config_flags

from vit_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe.")
_SAVES = flags.DEFINE_integer("saves", 10, "Checkpoints to write.", lower_bound=1)
flags.mark_flag_as_required("config")


def main() -> None:
    """Alternates steps with and without a save, and prints their times."""
    from timed_step import TimedStep

    from vit_jax.checkpoint.manager import Checkpoints, Retention

    step = TimedStep(_CONFIG.value)
    for _ in range(3):
        step()
    during: list[float] = []
    without: list[float] = []
    blocked, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder, retention=Retention(1))
        for number in range(1, _SAVES.value + 1):
            start = time.perf_counter()
            checkpoints.save(number, step.state, data={}, config={}, figures={})
            blocked.append(time.perf_counter() - start)
            steps = [step()]
            while checkpoints.saving:
                steps.append(step())
            whole.append(time.perf_counter() - start)
            during += steps
            checkpoints.wait()
            without += [step() for _ in steps]
        checkpoints.close()
    times = {"during_ms": during, "without_ms": without, "blocked_ms": blocked, "save_ms": whole}
    figures = {name: round(statistics.median(x) * 1e3, 1) for name, x in times.items()}
    ratio = statistics.median(during) / statistics.median(without)
    print(json.dumps({**figures, "ratio": round(ratio, 3), "steps": len(during)}))


if __name__ == "__main__":
    cli.run(main)
