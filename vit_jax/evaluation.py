"""Weights opened for evaluation: a run's checkpoint, a file of weights, or a registered name."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax import workdir as workdir_lib
from vit_jax.checkpoint.manager import read_params, with_sharding
from vit_jax.config import build_spec
from vit_jax.data.images import read_image
from vit_jax.data.tokenizers import Tokenizer, make_tokenizer
from vit_jax.errors import UserError
from vit_jax.evaluators import Suite
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.parallel.mesh import batch_shards, check_batch_size, make_mesh
from vit_jax.parallel.sharding import parameter_shardings
from vit_jax.pretrained import model as pretrained
from vit_jax.training import assembly

logger = logging.getLogger(__name__)

Cache = str | os.PathLike[str] | None


@dataclasses.dataclass(frozen=True)
class Opened:
    """Parameters with all that is needed to evaluate them.

    Attributes:
        model: without parameters.
        embedder: how its images and texts become embeddings.
        params: nested dict of arrays.
        templates: prompts of `classify`.
        step: that the parameters are from; 0 where there is none.
    """

    model: ModelDef
    embedder: Embedder
    params: Params
    templates: tuple[str, ...]
    step: int

    def evaluate(self, evals: Mapping[str, Any]) -> dict[str, float]:
        """Metrics of evaluation blocks, see `evaluators.Suite`."""
        return {name: value for found in self.each(evals) for name, value in found.items()}

    def each(self, evals: Mapping[str, Any]) -> Iterator[dict[str, float]]:
        """Metrics of one block after the other."""
        suite = Suite(evals, self.embedder)
        for name, reason in suite.skipped.items():
            logger.warning("%s is skipped: %s", name, reason)
        yield from suite.each(self.params)

    def classify(self, path: str, labels: Sequence[str]) -> dict[str, float]:
        """Probability of each label for one image, the likeliest first.

        Softmax over the labels for a model trained with softmax; for the sigmoid loss each
        label's own probability.
        """
        image = self.embedder.images(self.params, [{"image": read_image(path)}])
        texts = self.embedder.prompts(self.params, labels, self.templates)
        probabilities = self.embedder.probabilities(self.params, image @ texts.T)[0]
        order = np.argsort(-probabilities, kind="stable")
        return {labels[i]: float(probabilities[i]) for i in order}


@dataclasses.dataclass(frozen=True)
class TrainedRun(Opened):
    """A run's checkpoint."""

    config: ConfigDict
    workdir: pathlib.Path

    @property
    def spec(self) -> ModelSpec:
        """What the weights need elsewhere: architecture, preprocessing, tokenizer."""
        tokenizer = self.config.tokenizer and f"saved:{self.workdir.resolve()}"
        return dataclasses.replace(build_spec(self.config), tokenizer=tokenizer)


def restore(
    workdir: str | pathlib.Path, *, step: int | None = None, cache: Cache = None
) -> TrainedRun:
    """Opens a run's checkpoint, without its optimizer.

    Args:
        workdir: of the run.
        step: of the checkpoint; None for the newest.
        cache: folder for features, see `Embedder`.
    """
    config = workdir_lib.load_config(workdir)
    mesh = assembly.build_mesh(config)
    model = assembly.build_model(config)
    tokenizer = assembly.load_tokenizer(config, workdir)
    if tokenizer is not None:
        check_tokenizer(tokenizer, config.tokenizer, model, str(workdir))
    embedder = assembly.build_embedder(config, model, mesh, tokenizer, cache)
    abstract = with_sharding(model.shapes(), parameter_shardings(model, mesh))
    params, found = read_params(workdir, abstract, ema=config.optim.ema_decay > 0, step=step)
    return TrainedRun(
        model, embedder, params, tuple(config.data.templates), found, config,
        pathlib.Path(workdir),
    )  # fmt: skip


def open_weights(
    name: str | None,
    weights: str | None,
    *,
    batch_size: int,
    format: str | None = None,
    tokenizer: str | None = None,
    dtype: str = "float32",
    fsdp: int = 1,
    cache: Cache = None,
) -> Opened:
    """Opens a file of weights, or a registered name with fresh parameters.

    Args:
        name: as `create_model` takes it; None for weights that carry their description.
        weights: file; None for fresh parameters.
        batch_size: of evaluation, global.
        format: of the file; None recognises it.
        tokenizer: its spec, where the model's own needs a file.
        dtype: compute type.
        fsdp: devices that share the parameters.
        cache: folder for features, see `Embedder`.
    """
    mesh = make_mesh(fsdp=fsdp)
    check_batch_size(batch_size, batch_shards(mesh), "--batch_size")
    model = pretrained.create_model(name, weights, format=format, dtype=dtype)
    if weights is None:
        logger.warning("%s has no weights (--weights FILE): its parameters are random.", name)
    own, reader = model.spec.tokenizer, None
    if own is None and tokenizer:
        raise UserError(f"--tokenizer={tokenizer}: {weights or name} reads no text")
    if own == "sentencepiece" and not tokenizer:
        logger.warning("No --tokenizer=sentencepiece:FILE: pictures alone can be evaluated.")
    elif own is not None:
        text = model.spec.architecture.text
        reader = make_tokenizer(
            tokenizer or own, vocab_size=text.vocab_size, context_length=text.context_length
        )
        check_tokenizer(reader, own, model.definition, weights or str(name))
    embedder = Embedder(
        model.definition,
        mesh=mesh,
        tokenizer=reader,
        image_size=model.image_size,
        batch_size=batch_size,
        cache=cache,
        **dataclasses.asdict(model.spec.preprocess),
    )
    params = jax.device_put(model.params, parameter_shardings(model.definition, mesh))
    return Opened(model.definition, embedder, params, ("a photo of a {}.",), 0)


def check_tokenizer(tokenizer: Tokenizer, own: str, model: ModelDef, what: str) -> None:
    """Refuses a tokenizer whose ids mean something else to these weights.

    Args:
        tokenizer: that would be used.
        own: spec of the one that the weights were trained with.
        model: of the weights.
        what: names the weights.
    """
    kind = own.partition(":")[0]
    if kind != "saved" and tokenizer.kind != kind:
        raise UserError(
            f"{what} was trained with a tokenizer of the kind {kind!r}, found {tokenizer.kind!r}: "
            "its ids would mean other words"
        )
    if model.architecture.text.pool == "eot" and not tokenizer.end_is_largest:
        raise UserError(
            f"{what} pools its text at the largest id, which is not this tokenizer's end of text"
        )
