"""Cost of a checkpoint for the training steps that run while it is written.

    python benchmarks/save_cost.py --config configs/clip_emoji.py [--config.key=value ...]

Steps during a save alternate with steps without one, in one run, on random batches. Prints one JSON
object: median milliseconds of both kinds of steps, their ratio, the time for which `save` blocks
the loop, and the time until a checkpoint is written and verified.
"""

import json
import statistics
import tempfile
import time

from absl import flags

from vit_jax import cli

_CONFIG = cli.define_config()
_SAVES = flags.DEFINE_integer("saves", 10, "Number of checkpoints.", lower_bound=1)


def main() -> None:
    """Times steps with and without a save and prints the result."""
    from timed_step import TimedStep

    from vit_jax.checkpoint.manager import Checkpoints, Retention

    step = TimedStep(cli.load_config(str(_CONFIG.value)))
    for _ in range(3):
        step()
    during: list[float] = []
    without: list[float] = []
    blocked, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder, retention=Retention(1))
        for number in range(1, _SAVES.value + 1):
            start = time.perf_counter()
            checkpoints.save(number, step.state, data={}, config={}, metrics={})
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
    medians = {name: round(statistics.median(x) * 1e3, 1) for name, x in times.items()}
    ratio = statistics.median(during) / statistics.median(without)
    print(json.dumps({**medians, "ratio": round(ratio, 3), "steps": len(during)}))


if __name__ == "__main__":
    cli.run(main)
