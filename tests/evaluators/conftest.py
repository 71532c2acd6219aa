"""Fixtures of the evaluator tests."""

import jax
import pytest

from vit_jax.data.sources.base import Subset
from vit_jax.experiment import build


@pytest.fixture
def make_embedder(tiny_config, tmp_path):
    """Returns a function that builds the embedder and fresh parameters of the tiny model."""

    def make(devices=8, batch_size=64, cache=None, **changes):
        tiny_config.update_from_flattened_dict(changes)
        tiny_config.eval_batch_size = batch_size
        tiny_config.mesh.data = devices
        experiment = build(tiny_config, workdir=tmp_path / "run")
        return experiment.embedder(cache), jax.jit(experiment.model.init)(jax.random.key(0))

    return make


class CountedSource(Subset):
    """A source that counts how many images are read, and can fail after some."""

    def __init__(self, source, fail_after=None):
        super().__init__(source, range(len(source)))
        self._fail_after, self.reads = fail_after, 0

    def __getitem__(self, index):
        self.reads += 1
        if self._fail_after is not None and self.reads > self._fail_after:
            raise KeyboardInterrupt
        return super().__getitem__(index)
