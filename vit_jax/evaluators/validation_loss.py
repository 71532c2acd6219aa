"""The objective of a run on held-out data."""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import numpy as np

from vit_jax.data.batches import batch_transform
from vit_jax.data.broken import LEFT_OUT
from vit_jax.errors import UserError
from vit_jax.evaluators import prompts
from vit_jax.evaluators.batching import local_part, padded_batches, progress_bar
from vit_jax.evaluators.embedding import Embedder, check_positive
from vit_jax.evaluators.labels import open_labelled
from vit_jax.models.definition import Params
from vit_jax.objectives.base import Objective
from vit_jax.parallel.mesh import batch_sharding, batch_shards, replicated, to_devices


class ValidationLoss:
    """Loss and metrics of the run's objective on held-out data, without augmentation.

    Metrics: `loss`, and those of the objective, each the mean over examples.

    Most losses are means over examples. Their last batch is padded, and the padding has weight 0,
    so that the metrics are exact for any number of examples. A contrastive loss compares all
    examples of a batch: it depends on the batch size, and examples that do not fill the last batch
    are left out. Set `batch_size` to that of training to compare the two losses. A batch that the
    devices do not divide is computed as a whole by each of them.
    """

    needs_objective: ClassVar[bool] = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: source with the fields that the objective reads, as mnist5k:test.
            examples: number of examples, drawn at random without replacement; 0: all.
            batch_size: examples per batch over all devices; 0: `config.eval_batch_size`.
            templates: prompt templates of captions, see `config.data.templates`, or the name of a
                set of templates, see `prompts.templates`. One is drawn per caption.
            seed: PRNG seed of the order, and of the captions and templates that are drawn.
        """

        data: str
        examples: int = 0
        batch_size: int = 0
        templates: str | tuple[str, ...] = ("{}",)
        seed: int = 0

    def __init__(self, config: Config, embedder: Embedder, objective: Objective):
        """Opens the source.

        Args:
            config: keys of the evaluator.
            embedder: gives model, image preprocessing, tokenizer and devices.
            objective: objective of the run.

        Raises:
            UserError: a source without the fields that the objective reads, too few examples, or an
                objective without a loss of held-out data.
        """
        if objective.reads_state:
            raise UserError(
                f"{type(objective).__name__} compares the parameters with their own moving average "
                "and has no loss of held-out data: evaluate by knn or probe instead"
            )
        self._config, self._embedder, self._objective = config, embedder, objective
        self._batch_size = config.batch_size or embedder.batch_size
        check_positive(self._batch_size, "batch_size")
        shards = batch_shards(embedder.mesh)
        self._part = local_part(self._batch_size, shards)
        self._sharding = batch_sharding(embedder.mesh)
        if self._batch_size % shards and not objective.is_mean_over_examples:
            whole = dataclasses.replace(objective.context, mesh=None, batch_axes=())
            self._objective = type(objective)(objective.config, whole)
            self._part, self._sharding = range(self._batch_size), replicated(embedder.mesh)
        self._source = embedder.open_source(config.data)
        if "label" in objective.fields:
            self._check_classes()
        self._transform = batch_transform(
            objective.fields,
            self._source,
            "",
            embedder.inputs,
            tokenizer=embedder.tokenizer,
            templates=prompts.templates(config.templates),
            max_pixels=embedder.max_image_pixels,
            detection=objective.context.detection,
            captions_per_image=objective.context.captions_per_image,
            other_tokens=objective.other_tokens,
        )
        self._rows = self._choose_rows()

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        constants = self._objective.load_constants()
        evaluate = self._embedder.compile(self._objective.evaluate)
        totals: dict[str, float] = collections.defaultdict(float)
        batches = padded_batches(
            self._read,
            start=0,
            stop=len(self._rows),
            batch_size=self._batch_size,
            part=self._part,
        )
        with progress_bar("validation loss", total=len(self._rows)) as bar:
            for i, batch in enumerate(batches):
                valid = min(self._batch_size, len(self._rows) - i * self._batch_size)
                if self._objective.is_mean_over_examples:
                    batch["weight"] = self._weight(valid)
                loss, metrics = evaluate(params, to_devices(batch, self._sharding), *constants)
                for name, value in jax.device_get({"loss": loss, **metrics}).items():
                    totals[name] += float(value) * valid
                bar.update(valid)
        for name, total in totals.items():
            yield name, total / len(self._rows)

    def _read(self, index: int) -> dict[str, np.ndarray]:
        row = int(self._rows[index])
        rng = np.random.default_rng((self._config.seed, row))
        example = self._transform(self._source[row], rng)
        example.pop(LEFT_OUT, None)
        return example

    def _weight(self, valid: int) -> np.ndarray:
        """Returns the weights of this process's part of a batch, 0 for padding."""
        return (np.array(self._part) < valid).astype(np.float32)

    def _choose_rows(self) -> np.ndarray:
        data, count, batch_size = self._config.data, self._config.examples, self._batch_size
        if not 0 <= count <= len(self._source):
            raise UserError(f"examples={count}: {data} has {len(self._source)} examples")
        count = count or len(self._source)
        if not self._objective.is_mean_over_examples:
            if count < batch_size:
                raise UserError(
                    f"the objective needs whole batches of {batch_size} examples, {data} has "
                    f"{count}: set batch_size"
                )
            count -= count % batch_size
        return np.random.default_rng(self._config.seed).permutation(len(self._source))[:count]

    def _check_classes(self) -> None:
        source = open_labelled(self._embedder, self._config.data)
        found = len(source.class_names or ())
        expected: Any = getattr(self._embedder.model.architecture, "num_classes", found)
        if found != expected:
            raise UserError(
                f"{self._config.data} has {found} classes, the model has {expected} outputs"
            )
