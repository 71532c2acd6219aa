"""A trained run, opened for evaluation."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vit_jax.data.pictures import read_image
from vit_jax.evaluators import Suite
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models import families
from vit_jax.models.functional import ModelDef, Params
from vit_jax.models.spec import ModelSpec, Preprocess
from vit_jax.parallel.sharding import parameter_shardings
from vit_jax.training import assembly
from vit_jax.training import workdir as workdir_lib
from vit_jax.training.checkpoints import Checkpoints, with_sharding

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """Parameters of a checkpoint with all that is needed to use them."""

    config: ConfigDict
    model: ModelDef
    embedder: Embedder
    params: Params
    workdir: pathlib.Path

    @property
    def spec(self) -> ModelSpec:
        """What the weights need elsewhere: architecture, preprocessing, tokenizer."""
        return ModelSpec(
            architecture=self.model.architecture,
            preprocess=families.parse(Preprocess, self.config.preprocess.to_dict(), "preprocess"),
            tokenizer=self.config.tokenizer and f"saved:{self.workdir.resolve()}",
        )

    def evaluate(self, evals: Mapping[str, Any]) -> dict[str, float]:
        """Figures of evaluation blocks, see `evaluators.Suite`."""
        suite = Suite(evals, self.embedder)
        for name, reason in suite.skipped.items():
            logger.warning("%s is skipped: %s", name, reason)
        return suite.run(self.params)

    def classify(self, path: str, labels: Sequence[str]) -> dict[str, float]:
        """Probability of each label for one picture, the likeliest first.

        Softmax over the labels for a model trained with softmax; for the sigmoid loss each
        label's own probability.
        """
        image = self.embedder.images(self.params, [{"image": read_image(path)}])
        texts = self.embedder.prompts(self.params, labels, self.config.data.templates)
        probabilities = self.embedder.probabilities(self.params, image @ texts.T)[0]
        order = np.argsort(-probabilities, kind="stable")
        return {labels[i]: float(probabilities[i]) for i in order}


def restore(workdir: str | pathlib.Path, *, step: int | None = None) -> TrainedRun:
    """Opens a run's checkpoint, without its optimizer.

    Args:
        workdir: of the run.
        step: of the checkpoint; None for the newest.
    """
    config = workdir_lib.load_config(workdir)
    mesh = assembly.build_mesh(config)
    model = assembly.build_model(config)
    tokenizer = assembly.load_tokenizer(config, workdir)
    embedder = assembly.build_embedder(config, model, mesh, tokenizer)
    checkpoints = Checkpoints(workdir)
    abstract = with_sharding(model.shapes(), parameter_shardings(model, mesh))
    params = checkpoints.restore_params(abstract, ema=config.optim.ema_decay > 0, step=step)
    checkpoints.close()
    return TrainedRun(config, model, embedder, params, pathlib.Path(workdir))
