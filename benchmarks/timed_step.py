"""The training step of a config on random data, timed from outside; shared by the benchmarks."""

import time

import jax
from ml_collections import ConfigDict

from vit_jax.training import assembly


class TimedStep:
    """A compiled step with its state: each call does one and returns its seconds."""

    def __init__(self, config: ConfigDict):
        """Compiles, and does the first step."""
        mesh = assembly.build_mesh(config)
        program = assembly.build_program(config, mesh, warmup_steps=1, total_steps=1000)
        self._step, self._constants = program.step, program.load_constants()
        self._batch = assembly.random_batch(config, mesh)
        self.state = program.init()
        self()

    def __call__(self) -> float:
        start = time.perf_counter()
        self.state, metrics = self._step(self.state, self._batch, *self._constants)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start
