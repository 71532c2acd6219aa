"""The state of a run: what hooks read and change."""

import collections
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
from clu import parameter_overview
from etils import epath

from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.parallel import processes
from vit_jax.parallel.mesh import prefetch
from vit_jax.tracking import Trackers
from vit_jax.training.stages import Stage
from vit_jax.training.state import TrainState
from vit_jax.training.throughput import Throughput
from vit_jax.training.variants import Variant

if TYPE_CHECKING:
    from vit_jax.experiment import Experiment
    from vit_jax.training.hooks.base import Hook

logger = logging.getLogger(__name__)


class Run:
    """A run between two steps.

    Attributes:
        experiment: the objects of the run.
        stages: its stages; the last one is `experiment`.
        workdir: folder of the run, local or in a bucket.
        checkpoints: its checkpoints.
        hooks: hooks in the order in which they run.
        state: parameters, optimizer state and EMA.
        step: steps done.
        batch_number: number of the newest batch; the first batch of a run is 1.
        bad_batches: numbers of the batches whose loss or gradient was not finite.
        variant: variant of the step that the newest batch has drawn.
        drawn: number of steps of each variant; empty where nothing is drawn.
        batches: iterator over global batches on the devices.
        trackers: where metrics go.
        throughput: clock of the steps.
        evaluation: metrics of an evaluation of this very step; empty where there was none.
    """

    state: TrainState
    variant: Variant
    trackers: Trackers
    throughput: Throughput
    batches: Iterator[dict[str, jax.Array]]

    def __init__(
        self,
        experiment: "Experiment",
        stages: Sequence[Stage],
        workdir: epath.Path,
        checkpoints: Checkpoints,
        hooks: Sequence["Hook"],
    ):
        """Declares a run; `restore` gives it a state."""
        self.experiment, self.stages, self.workdir = experiment, list(stages), workdir
        self.config, self.durations = experiment.config, experiment.durations
        self.checkpoints, self.hooks = checkpoints, list(hooks)
        self.step = self.batch_number = 0
        self.bad_batches: set[int] = set()
        self.drawn = collections.Counter[str]()
        self.evaluation: dict[str, float] = {}

    def restore(self) -> None:
        """Takes the state of the newest checkpoint, or initialises one."""
        self.step = self.checkpoints.latest_step() or 0
        self._loader = self.stage.experiment.loader
        if self.step:
            abstract = self.experiment.abstract_state
            self.state, position = self.checkpoints.restore(self.step, abstract)
            self.bad_batches.update(position.get("non_finite", ()))
            self.batch_number = position["examples"] // self.config.batch_size
            self.drawn = collections.Counter(position.get("drawn"))
            self._loader.set_state(position)
            logger.warning("Resuming %s at step %d.", self.workdir, self.step)
        else:
            self.state, self.batch_number = self.experiment.init_state(), 0
            self.drawn.clear()
            overview = parameter_overview.get_parameter_overview(
                self.state.params, include_stats=False
            )
            logger.info("\n%s", overview)
            self._loader.set_state({"examples": 0})
        self._numbers = self._batch_numbers()
        self.batches = self._batches()

    @property
    def stage(self) -> Stage:
        """The stage of the next step; at the end of the run the last one."""
        return next((each for each in self.stages if self.step < each.end), self.stages[-1])

    def next_batch(self) -> dict[str, jax.Array]:
        """The next global batch, on the devices."""
        number = next(self._numbers)
        self.variant = self.stage.experiment.variants.at(number)
        batch = next(self.batches)
        self.batch_number = number
        if self.variant.name:
            self.drawn[self.variant.name] += 1
        return batch

    def evaluate(self, *, save: bool) -> None:
        """Runs the evaluators of the config on this step.

        Args:
            save: whether to store the predictions.
        """
        suite = self.experiment.suite
        self.evaluation = suite.run(self.state.eval_params)
        if save:
            suite.save_predictions(self.workdir, self.config.eval_predictions)

    def settle(self) -> None:
        """Lets hooks look at the newest step before its state is saved, evaluated or shown.

        Raises:
            Rollback: the step was not finite, and the run continues from its newest checkpoint.
            UserError: the step was not finite, and the run stops.
        """
        for hook in self.hooks:
            hook.settle()

    def counters(self) -> dict[str, float]:
        """Counts of what was drawn and left out so far; every process must ask."""
        counters = {f"drawn/{name}": float(count) for name, count in sorted(self.drawn.items())}
        counters["broken_examples"] = float(self._broken_examples())
        if self.config.non_finite != "stop":
            counters["non_finite_batches"] = float(len(self.bad_batches))
        return counters

    def save(self, *, urgent: bool = False) -> None:
        """Starts saving a checkpoint of this step.

        Args:
            urgent: whether the run waits for the save; otherwise the save yields to the run.
        """
        position = {
            "examples": self.batch_number * self.config.batch_size,
            "non_finite": sorted(self.bad_batches),
            "broken": self._broken_examples(),
            "drawn": dict(self.drawn),
        }
        self.trackers.flush()
        self.checkpoints.save(
            self.step,
            self.state,
            data=position,
            config=self.experiment.resolved_config.to_dict(),
            metrics=self.evaluation,
            urgent=urgent,
        )

    def _broken_examples(self) -> int:
        examples = self.batch_number * self.config.batch_size
        return processes.total(self._loader.broken(examples))

    def _batch_numbers(self) -> Iterator[int]:
        """Numbers of the batches to train on from here; a rollback leaves out the bad ones."""
        numbers = itertools.count(self.batch_number + 1)
        if self.config.non_finite != "rollback":
            return numbers
        return (n for n in numbers if n not in self.bad_batches)

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        """Global batches on the devices; those of a stage are read with its preprocessing."""
        while self.step < self.durations.total:
            stage, loader = self.stage, self.stage.experiment.loader
            if loader is not self._loader:
                logger.info("The stage from step %d has images of %s px.", self.step, stage.size)
                examples = self.batch_number * self.config.batch_size
                loader.set_state({"examples": examples, "broken": self._broken_examples()})
                self._loader = loader
            batches = itertools.islice(self._wanted_batches(), stage.end - self.step)
            yield from prefetch(batches, self.experiment.mesh)

    def _wanted_batches(self) -> Iterator[dict[str, Any]]:
        """This process's part of the batches of `_batch_numbers`."""
        numbers, first = self._batch_numbers(), self.batch_number + 1
        wanted = next(numbers)
        for number, batch in enumerate(self._loader, first):
            if number == wanted:
                wanted = next(numbers)
                yield batch
