"""Random and Bayesian search of config values, with early stopping, by Optuna.

The study is kept in the folder of the search, `study.log`; trial N is the run in `trial-N`.
"""

import logging
from collections.abc import Sequence
from typing import Any

from vit_jax import interruption
from vit_jax.errors import MissingPackageError, UserError, check_name
from vit_jax.paths import as_local_path, as_path
from vit_jax.recipes import recipe_module
from vit_jax.reporting.comparison import lower_is_better
from vit_jax.reporting.runs import METRICS_FILE, read_run
from vit_jax.sweeping.local import train_one
from vit_jax.sweeping.variants import Variant, make_variant

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
except ImportError:
    raise MissingPackageError("a search needs Optuna: pip install 'vit_jax[search]'") from None

logger = logging.getLogger(__name__)

SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}

_FOLDER = "folder"  # attribute of a trial


def search(
    recipe: str,
    overrides: Sequence[str],
    workdir: str,
    *,
    metric: str,
    trials: int,
    sampler: str = "tpe",
    seed: int = 0,
) -> optuna.Study:
    """Trains trials until there are enough; the same call continues an interrupted search.

    A trial whose evaluations during training (`config.eval_*`) are worse than the median of the
    earlier trials at that step is stopped.

    Args:
        recipe: recipe with `get_search(trial)`, which returns the changes of a trial by config key:
            {"optim.lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True)}.
        overrides: changes for all trials.
        workdir: folder of the search, local.
        metric: metric of an evaluation, as "zeroshot/heldout_names/top1". Whether it is to be high
            or low follows from its name, see `comparison.lower_is_better`.
        trials: number of trials, those of earlier calls included.
        sampler: key of `SAMPLERS`: Bayesian (TPE) or random.
        seed: seed of the sampler.

    Returns:
        The study.

    Raises:
        UserError: no `get_search` in the recipe, a wrong key or value, or no such metric.
        Interrupted: SIGINT or SIGTERM; the running trial has saved its state.
    """
    module = recipe_module(recipe)
    if not hasattr(module, "get_search"):
        raise UserError(f"{recipe} has no function get_search(trial), see vit_jax.sweeping.search")
    check_name(sampler, SAMPLERS, "sampler")
    folder = as_local_path(workdir, "Optuna keeps its study in a local file")
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        study_name=metric,
        load_if_exists=True,
        direction="minimize" if lower_is_better(metric) else "maximize",
        pruner=optuna.pruners.MedianPruner(),
    )
    study.sampler = SAMPLERS[sampler](seed=seed + len(study.trials))  # not the same draws again
    _requeue(study)
    interruption.working()  # the running trial, not this process, has a state to save
    while (number := _ended(study)) < trials:
        trial = study.ask()
        changes = module.get_search(trial)
        name = trial.user_attrs.get(_FOLDER, f"trial-{number}")
        trial.set_user_attr(_FOLDER, name)
        logger.info("%d of %d: %s %s", number + 1, trials, name, changes)
        _run(study, trial, make_variant(name, changes, recipe, overrides), workdir, metric)
    return study


def _run(
    study: optuna.Study, trial: optuna.Trial, variant: Variant, workdir: str, metric: str
) -> None:
    """Trains a trial and tells the study how it ended."""
    reported: set[int] = set()
    file, size = as_path(workdir) / variant.name / METRICS_FILE, 0

    def report() -> None:
        nonlocal size
        grown = file.stat().length if file.exists() else 0
        if grown == size:  # asked several times a second
            return
        size = grown
        for step, value in _values(workdir, variant, metric).items():
            if step not in reported:
                trial.report(value, step)
                reported.add(step)

    def should_stop() -> bool:
        report()
        return bool(reported and trial.should_prune())  # NumPy's bool

    code = train_one(variant, workdir, should_stop)
    report()  # later trials are compared with all of its values
    if code == interruption.RESUMABLE:
        study.tell(trial, state=TrialState.PRUNED)
        return
    if code:
        logger.warning("%s has failed with exit code %d", variant.name, code)
        study.tell(trial, state=TrialState.FAIL)
        return
    run = read_run(f"{workdir}/{variant.name}")
    check_name(metric, run.curves, "metric of the trials")
    study.tell(trial, run.last_values[metric])


def _values(workdir: str, variant: Variant, metric: str) -> dict[int, float]:
    """Values of the metric so far, by step."""
    try:
        curve = read_run(f"{workdir}/{variant.name}").curves.get(metric)
    except UserError:  # the run has not written yet
        return {}
    return {} if curve is None else dict(zip(curve.steps, curve.values, strict=True))


def _requeue(study: optuna.Study) -> None:
    """Lets trials that were interrupted continue in their folders."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if _FOLDER in trial.user_attrs:
            study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)


def _ended(study: optuna.Study) -> int:
    """Number of trials that ended; one that continues another counts once."""
    folders = {
        trial.user_attrs[_FOLDER]
        for trial in study.get_trials(
            states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        )
        if _FOLDER in trial.user_attrs
    }
    waiting = study.get_trials(states=(TrialState.WAITING,))
    return len(folders - {trial.user_attrs.get(_FOLDER) for trial in waiting})


def table(study: optuna.Study) -> list[list[str]]:
    """Rows of the trials, the best first: folder, state, value and parameters."""
    last = {trial.user_attrs.get(_FOLDER): trial for trial in study.trials}  # it may have continued
    ended: list[Any] = [t for t in last.values() if t.state.is_finished() and t.params]
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    ended.sort(key=lambda t: (t.value is None, sign * (t.value or 0)))
    names = dict.fromkeys(name for trial in ended for name in trial.params)
    rows = [["trial", "state", study.study_name, *names]]
    for trial in ended:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        params = [f"{trial.params[name]:.4g}" if isinstance(trial.params.get(name), float)
                  else str(trial.params.get(name, "-")) for name in names]  # fmt: skip
        rows.append([trial.user_attrs.get(_FOLDER, "-"), trial.state.name.lower(), value, *params])
    return rows
