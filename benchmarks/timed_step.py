"""The training step of a config on random data, shared by the benchmarks."""

import time

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.experiment import Experiment, build
from vit_jax.parallel.mesh import batch_sharding, to_devices


class TimedStep:
    """A compiled step and its state: each call runs one step and returns its seconds.

    Attributes:
        state: training state after the newest step.
    """

    def __init__(self, config: ConfigDict) -> None:
        """Compiles the step and runs it once.

        Args:
            config: config of a run.
        """
        experiment = build(config, data=False)
        self._step = experiment.train_step
        self._batch = random_batch(experiment)
        self._constants = experiment.objective.load_constants()
        self.state = experiment.init_state()
        self()

    def __call__(self) -> float:
        """Runs one step and waits for it."""
        start = time.perf_counter()
        self.state, metrics = self._step(self.state, self._batch, *self._constants)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def random_batch(experiment: Experiment, seed: int = 0) -> dict[str, jax.Array]:
    """Draws a batch of uniform integers on the devices of an experiment.

    Args:
        experiment: experiment, with or without data.
        seed: PRNG seed.
    """
    rng = np.random.default_rng(seed)
    batch = {
        name: rng.integers(1, 255, x.shape).astype(x.dtype)
        for name, x in experiment.abstract_batch.items()
    }
    return to_devices(batch, batch_sharding(experiment.mesh))
