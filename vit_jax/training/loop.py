"""A run, from a config to its figures."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator

import jax
from clu import parameter_overview
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.data.sources import open_source
from vit_jax.errors import Interrupted, UserError
from vit_jax.evaluators import Suite
from vit_jax.parallel import processes
from vit_jax.parallel.mesh import prefetch
from vit_jax.training import assembly
from vit_jax.training import workdir as workdir_lib
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.metrics import MetricWriter, Progress, duration

logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, float]:
    """Trains, evaluates and checkpoints; continues where the workdir's newest checkpoint stands.

    Args:
        config: see `vit_jax.config`.
        workdir: of the run: `config.json`, `tokenizer.json`, `metrics.jsonl`, `tensorboard/` and
            `checkpoints/`.

    Returns:
        The figures of the last evaluation.

    Raises:
        UserError: something in the config or the data; nothing was written.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    started = time.monotonic()
    workdir = pathlib.Path(workdir)
    # Everything that can be wrong is found before the workdir is touched.
    config_lib.validate(config)
    workdir_lib.check_same_config(workdir, config)
    mesh = assembly.build_mesh(config)
    assembly.check_batch_sizes(config, mesh)
    source = open_source(config.data.train)
    tokenizer = assembly.build_tokenizer(config, source, workdir)
    batches = assembly.build_batches(config, source, tokenizer)
    lengths = Lengths.of(config, batches.epoch_examples)
    program = assembly.build_program(
        config, mesh, warmup_steps=lengths.warmup, total_steps=lengths.total
    )
    embedder = assembly.build_embedder(config, program.model, mesh, tokenizer)
    suite = Suite(config.evals, embedder)
    for name, reason in suite.skipped.items():
        logger.warning("%s is skipped: %s", name, reason)

    if jax.process_index() == 0:
        workdir_lib.save_config(workdir, config)
        if tokenizer is not None:
            tokenizer.save(workdir)
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
    first_step = checkpoints.latest_step() or 0
    if first_step:
        state, position = checkpoints.restore(first_step, program.abstract)
        batches.set_state(position)
        logger.warning("Resuming %s at step %d.", workdir, first_step)
    else:
        state = program.init()
        logger.info(
            "\n%s", parameter_overview.get_parameter_overview(state.params, include_stats=False)
        )
    writer = MetricWriter(workdir, first_step)
    figures: dict[str, float] = {}
    if first_step >= lengths.total:
        logger.warning("The run of %d steps is complete; evaluating it.", lengths.total)
        figures = suite.run(state.eval_params)
    progress = Progress(lengths.total, config.batch_size)
    feed = prefetch(batches, mesh)
    with _stop_signals() as stop, contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        stack.callback(writer.close)
        for step in range(first_step + 1, lengths.total + 1):
            with progress.waiting():
                batch = next(feed)
            state, metrics = program.step(state, batch)
            progress.dispatched(metrics)
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                progress.start(step)
                logger.info("First step after %.1f s.", time.monotonic() - started)
            last = step == lengths.total
            if last or step % config.log_steps == 0:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                if not math.isfinite(values["loss"]):
                    raise UserError(f"the loss is {values['loss']} at step {step}")
                progress.show(step, values["loss"])
                broken = batches.broken(step * config.batch_size)
                values["broken_examples"] = processes.total(broken)
                writer.write_scalars(step, {**values, **progress.rates(step)})
            if last or (lengths.eval and step % lengths.eval == 0):
                with progress.paused():
                    figures = suite.run(state.eval_params)
                if figures:
                    writer.write_scalars(step, figures)
            stopping = stop(step)
            if last or stopping or (lengths.checkpoint and step % lengths.checkpoint == 0):
                examples = step * config.batch_size
                broken = processes.total(batches.broken(examples))
                position = {"examples": examples, "broken": broken}
                checkpoints.save(step, state, position)
            if stopping and not last:
                raise Interrupted(
                    f"stopped and saved at step {step} of {lengths.total}; "
                    "the same command goes on from there"
                )
    logger.info("Done in %s.", duration(time.monotonic() - started))
    return figures


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths of a run in steps; 0 where there is none.

    Attributes:
        total: of the run.
        warmup: of the learning rate's warm-up.
        eval: between evaluations.
        checkpoint: between checkpoints.
    """

    total: int
    warmup: int
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
            eval=config_lib.steps(config, "eval", **units),
            checkpoint=config_lib.steps(config, "checkpoint", **units),
        )


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[int], bool]]:
    """Tells after each step whether to stop, so that the step at hand can end and be saved.

    One process listens to SIGINT and SIGTERM; a second Ctrl-C acts at once. Several processes must
    stop at the same step: `jax.distributed` hears SIGTERM on any of them and agrees on one.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda step: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
