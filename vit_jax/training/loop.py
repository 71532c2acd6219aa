"""The training loop."""

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import jax

from vit_jax import provenance
from vit_jax import workdir as workdir_lib
from vit_jax.checkpoint.manager import Checkpoints, Retention, set_damaged_aside
from vit_jax.parallel import processes
from vit_jax.paths import StrPath, as_path
from vit_jax.tracking import Trackers
from vit_jax.training.hooks import build_hooks
from vit_jax.training.hooks.checkpoint import Checkpoint
from vit_jax.training.hooks.evaluate import Evaluate
from vit_jax.training.hooks.non_finite import NonFinite, Rollback
from vit_jax.training.hooks.preemption import stop_signals
from vit_jax.training.hooks.progress import Progress
from vit_jax.training.hooks.watchdog import Watchdog
from vit_jax.training.resume import check_resumable
from vit_jax.training.run import Run
from vit_jax.training.stages import Stage, make_stages

if TYPE_CHECKING:
    from vit_jax.experiment import Experiment

logger = logging.getLogger(__name__)


def train(experiment: "Experiment", workdir: StrPath) -> dict[str, float]:
    """Trains, evaluates and saves checkpoints; continues from the newest checkpoint of the workdir.

    Args:
        experiment: objects of the run.
        workdir: folder of the run, local or gs://, for `config.json`, `tokenizer.json`,
            `metrics.jsonl`, `tensorboard/`, `checkpoints/` and `provenance/`, and at the end
            `result.json`.

    Returns:
        Metrics of the last evaluation.

    Raises:
        UserError: the config or the data is wrong, and nothing was written; or later a full disk,
            a lost permission or a loss that is not finite, and the newest checkpoint is intact.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    started, config = time.monotonic(), experiment.config
    workdir = workdir_lib.workdir_path(workdir)
    retention = Retention(config.keep_checkpoints, config.keep_every_steps, config.keep_best)
    non_finite = NonFinite(config.non_finite, config.non_finite_limit)
    user_hooks = build_hooks(config.hooks.to_dict())
    stages = _check(experiment, workdir)
    constants = experiment.objective.load_constants()
    with contextlib.ExitStack() as stack:
        stack.enter_context(workdir_lib.readable_file_errors(workdir))
        stop = stack.enter_context(stop_signals())
        start = _open_workdir(experiment, workdir, stack)
        checkpoints = Checkpoints(workdir, retention=retention)
        stack.callback(checkpoints.close)
        watchdog = stack.enter_context(Watchdog(config.watchdog_seconds))
        hooks = [
            non_finite,  # before Progress, which lets it check the step that is logged
            Progress(started),
            watchdog,
            *user_hooks,
            Evaluate(),
            Checkpoint(stop),
        ]
        run = Run(experiment, stages, workdir, checkpoints, hooks)
        while True:
            try:
                _train(run, constants, start)
                break
            except Rollback:
                continue
        if jax.process_index() == 0:
            workdir_lib.save_result(workdir, run.step, run.evaluation)
    logger.info("Done in %.0f s.", time.monotonic() - started)
    return run.evaluation


def _train(run: Run, constants: tuple, start: tuple[dict[str, Any], str]) -> None:
    """Trains from the newest checkpoint to the end."""
    run.restore()
    total = run.durations.total
    if run.step >= total:
        logger.warning("The run of %d steps is complete; evaluating it.", total)
        run.evaluate(save=True)
        return
    with contextlib.ExitStack() as stack:
        run.trackers = Trackers(run.config.trackers.to_dict(), run.workdir, run.step)
        stack.callback(run.trackers.close)
        run.trackers.write_config(run.experiment.resolved_config.to_dict())
        run.trackers.write_start(*start)
        for hook in run.hooks:
            hook.on_start(run)
            stack.callback(hook.on_end, run)
        while run.step < total:
            batch = run.next_batch()
            step = run.variant.experiment.train_step
            run.state, metrics = step(run.state, batch, *constants)
            run.step += 1
            for hook in run.hooks:
                hook.after_step(run, run.step, metrics)


def _check(experiment: "Experiment", workdir: StrPath) -> list[Stage]:
    """Builds every part, so that any mistake is found before the workdir is touched."""
    Trackers.check(experiment.config.trackers.to_dict())
    for part in ("mesh", "objective", "source", "tokenizer", "loader", "abstract_state"):
        getattr(experiment, part)
    stages = make_stages(experiment)
    for stage in stages:
        names = ", ".join(each.name for each in stage.experiment.variants)
        if names:
            logger.info("Each step up to %d draws one of: %s.", stage.end, names)
    for name, reason in experiment.suite.skipped.items():
        logger.warning("%s is skipped: %s", name, reason)
    check_resumable(workdir, experiment)
    return stages


def _open_workdir(
    experiment: "Experiment", workdir: StrPath, stack: contextlib.ExitStack
) -> tuple[dict[str, Any], str]:
    """Locks the workdir and writes config and tokenizer; all processes fail together.

    Returns:
        The record of this start, of process 0 alone.
    """
    start: tuple[dict[str, Any], str] = {}, ""
    with processes.together():
        if jax.process_index() == 0:
            stack.enter_context(workdir_lib.locked(workdir))
            set_damaged_aside(workdir)
            (as_path(workdir) / workdir_lib.RESULT_FILE).unlink(missing_ok=True)
            workdir_lib.save_config(workdir, experiment.resolved_config)
            start = provenance.record(workdir)
            if experiment.tokenizer is not None:
                experiment.tokenizer.save(workdir)
    return start
