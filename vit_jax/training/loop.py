"""A run, from a config to its metrics."""

import contextlib
import dataclasses
import itertools
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax import workdir as workdir_lib
from vit_jax.checkpoint.manager import Checkpoints, Retention, has_checkpoint, set_damaged_aside
from vit_jax.checkpoint.resume import check_resumable
from vit_jax.data.loader import Batches
from vit_jax.data.sources import open_source
from vit_jax.errors import Interrupted, check_name
from vit_jax.evaluators import Suite
from vit_jax.parallel import processes
from vit_jax.parallel.mesh import prefetch
from vit_jax.tracking.metrics import MetricWriter, Progress, duration
from vit_jax.training import assembly
from vit_jax.training.assembly import Program
from vit_jax.training.hooks.non_finite import POLICIES, NonFinite, Rollback, write_dump
from vit_jax.training.hooks.preemption import stop_signals
from vit_jax.training.hooks.watchdog import Watchdog
from vit_jax.training.step import TrainState, per_layer_names

logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, float]:
    """Trains, evaluates and checkpoints; continues where the workdir's newest checkpoint stands.

    Args:
        config: see `vit_jax.config`.
        workdir: of the run: `config.json`, `tokenizer.json`, `metrics.jsonl`, `tensorboard/` and
            `checkpoints/`.

    Returns:
        The metrics of the last evaluation.

    Raises:
        UserError: something in the config or the data, and nothing was written; or later a full
            disk, a lost permission, a loss that is not finite, and the newest checkpoint is whole.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    started = time.monotonic()
    workdir = pathlib.Path(workdir)
    # Everything that can be wrong is found before the workdir is touched.
    config_lib.validate(config)
    check_name(config.non_finite, POLICIES, "config.non_finite,")
    retention = Retention(config.keep_checkpoints, config.keep_every_steps, config.keep_best)
    mesh = assembly.build_mesh(config)
    assembly.check_batch_sizes(config, mesh)
    source = open_source(config.data.train)
    tokenizer = assembly.build_tokenizer(config, source, workdir)
    batches = assembly.build_batches(config, source, tokenizer)
    lengths = Lengths.of(config, batches.epoch_examples)
    program = assembly.build_program(
        config,
        mesh,
        warmup_steps=lengths.warmup,
        total_steps=lengths.total,
        cooldown_steps=lengths.cooldown,
        resumed=has_checkpoint(workdir),
    )
    embedder = assembly.build_embedder(config, program.model, mesh, tokenizer)
    suite = Suite(config.evals, embedder)
    for name, reason in suite.skipped.items():
        logger.warning("%s is skipped: %s", name, reason)
    check_resumable(workdir, config, program)

    constants = program.load_constants()

    with contextlib.ExitStack() as stack:
        stack.enter_context(workdir_lib.readable_file_errors(workdir))
        stop = stack.enter_context(stop_signals())
        with processes.together():
            if jax.process_index() == 0:
                stack.enter_context(workdir_lib.locked(workdir))
                set_damaged_aside(workdir)
                workdir_lib.save_config(workdir, config)
                if tokenizer is not None:
                    tokenizer.save(workdir)
        checkpoints = Checkpoints(workdir, retention=retention)
        stack.callback(checkpoints.close)
        watchdog = stack.enter_context(Watchdog(config.watchdog_seconds))
        run = Run(
            config,
            workdir,
            batches,
            lengths,
            program,
            constants,
            suite,
            checkpoints,
            watchdog,
            stop,
            started,
        )
        figures = run.finish()
    logger.info("Done in %s.", duration(time.monotonic() - started))
    return figures


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths of a run in steps; 0 where there is none.

    Attributes:
        total: of the run.
        warmup: of the learning rate's warm-up.
        cooldown: of its fall to 0 at the end.
        eval: between evaluations.
        checkpoint: between checkpoints.
    """

    total: int
    warmup: int
    cooldown: int
    eval: int
    checkpoint: int

    @classmethod
    def of(cls, config: ConfigDict, epoch_examples: int) -> "Lengths":
        """Reads the key groups of a config."""
        units = {"batch_size": config.batch_size, "epoch_examples": epoch_examples}
        total = config_lib.steps(config, "total", **units)
        units["total"] = total
        return cls(
            total=total,
            warmup=config_lib.steps(config.optim, "warmup", **units),
            cooldown=config_lib.steps(config.optim, "cooldown", **units),
            eval=config_lib.steps(config, "eval", **units),
            checkpoint=config_lib.steps(config, "checkpoint", **units),
        )


@dataclasses.dataclass
class Run:
    """What `train` has put together, and the loop over steps."""

    config: ConfigDict
    workdir: pathlib.Path
    batches: Batches
    lengths: Lengths
    program: Program
    constants: tuple[Any, ...]
    suite: Suite
    checkpoints: Checkpoints
    watchdog: Watchdog
    stop: Callable[[int], bool]
    started: float

    def __post_init__(self) -> None:
        config = self.config
        self.non_finite = NonFinite(config.non_finite, config.non_finite_limit, self._dump)

    def finish(self) -> dict[str, float]:
        """Trains to the end, over rollbacks; returns the metrics of the last evaluation."""
        while True:
            try:
                return self._train()
            except Rollback:
                continue

    def _begin(self) -> tuple[TrainState, int, int]:
        """The newest state, its step, and the batches consumed until then."""
        step = self.checkpoints.latest_step() or 0
        if not step:
            state = self.program.init()
            table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
            logger.info("\n%s", table)
            self.batches.set_state({"examples": 0})
            return state, 0, 0
        state, position = self.checkpoints.restore(step, self.program.abstract)
        self.batches.set_state(position)
        self.non_finite.batches.update(position.get("non_finite", ()))
        logger.warning("Resuming %s at step %d.", self.workdir, step)
        return state, step, position["examples"] // self.config.batch_size

    def _train(self) -> dict[str, float]:
        """From the newest state to the end."""
        config, lengths = self.config, self.lengths
        state, first_step, consumed = self._begin()
        figures: dict[str, float] = {}
        if first_step >= lengths.total:
            logger.warning("The run of %d steps is complete; evaluating it.", lengths.total)
            figures = self.suite.run(state.eval_params)
        progress = Progress(lengths.total, config.batch_size)
        feed = prefetch(self._wanted(consumed), self.program.mesh)
        with contextlib.closing(MetricWriter(self.workdir, first_step)) as writer:
            for step, number in zip(
                range(first_step + 1, lengths.total + 1), self._numbers(consumed), strict=False
            ):
                with progress.waiting():
                    batch = next(feed)
                state, metrics = self.program.step(state, batch, *self.constants)
                progress.dispatched(metrics)
                if step == first_step + 1:
                    jax.block_until_ready(metrics)
                    progress.start(step)
                    logger.info("First step after %.1f s.", time.monotonic() - self.started)
                self.non_finite.saw(step, number, metrics)
                self.watchdog.saw(step)
                self.checkpoints.check()
                last = step == lengths.total
                if last or step % config.log_steps == 0:
                    self.non_finite.settle()
                    values = self._scalars(metrics)
                    values["broken_examples"] = self._broken(number)
                    progress.show(step, values["loss"])
                    writer.write_scalars(step, {**values, **progress.rates(step)})
                judged: dict[str, float] = {}
                if last or _due(step, lengths.eval):
                    self.non_finite.settle()
                    with progress.paused():
                        figures = judged = self.suite.run(state.eval_params)
                    if figures:
                        writer.write_scalars(step, figures)
                stopping = self.stop(step)
                due = last or stopping or _due(step, lengths.checkpoint)
                if due or self.checkpoints.is_best(judged):
                    self.non_finite.settle()
                    self._save(step, number, state, judged, urgent=last or stopping)
                if stopping and not last:
                    raise Interrupted(
                        f"stopped and saved at step {step} of {lengths.total}; "
                        "the same command goes on from there"
                    )
        return figures

    def _numbers(self, consumed: int) -> Any:
        """Numbers of the batches to train on, the run's first being 1, after `consumed`."""
        numbers = itertools.count(consumed + 1)
        if self.config.non_finite != "rollback":
            return numbers
        return (n for n in numbers if n not in self.non_finite.batches)

    def _wanted(self, consumed: int) -> Any:
        """The batches of `_numbers`."""
        wanted = self._numbers(consumed)
        following = next(wanted)
        for number, batch in enumerate(self.batches, consumed + 1):
            if number == following:
                following = next(wanted)
                yield batch

    def _scalars(self, metrics: dict[str, jax.Array]) -> dict[str, float]:
        shown = {k: v for k, v in metrics.items() if k not in ("finite", "per_layer_grad_norms")}
        values = {k: float(v) for k, v in jax.device_get(shown).items()}
        if self.config.non_finite != "stop":
            values["non_finite_batches"] = float(len(self.non_finite.batches))
        return values

    def _broken(self, number: int) -> int:
        """Broken examples of all processes until a batch; every process must ask."""
        return processes.total(self.batches.broken(number * self.config.batch_size))

    def _save(
        self, step: int, number: int, state: TrainState, figures: dict[str, float], urgent: bool
    ) -> None:
        position = {
            "examples": number * self.config.batch_size,
            "non_finite": sorted(self.non_finite.batches),
            "broken": self._broken(number),
        }
        config = self.config.to_dict()
        self.checkpoints.save(
            step, state, data=position, config=config, figures=figures, urgent=urgent
        )

    def _dump(self, step: int, number: int, metrics: dict[str, Any]) -> None:
        if jax.process_index():
            return
        first, last = (number - 1) * self.config.batch_size, number * self.config.batch_size
        write_dump(
            self.workdir,
            step,
            metrics,
            layers=per_layer_names(self.program.model),
            positions=(first, last),
            rows=self.batches.rows(first, last),
        )


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
