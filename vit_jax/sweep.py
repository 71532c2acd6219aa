"""Trains the variants of a recipe, which answer whether a change helps, by how much, beyond noise.

    python -m vit_jax.sweep --config configs/ablations/loss.py --workdir runs/loss

`get_sweep()` of the recipe names the variants, see `vit_jax.sweeping`; each is a run in a folder of
its own name. Finished variants are skipped, interrupted ones continue, and the failure of one does
not stop the others. At the end the last metrics are printed, with mean and standard deviation over
seeds. Exit codes: 0 all variants are finished, 1 some have failed, 2 an error whose message says
how to fix it, 75 interrupted.

    --list              print the variants, their state and cost; train nothing
    --executor slurm    submit an array with launch/slurm.sbatch; arguments of sbatch after --, as
                        -- --nodes=1 --gpus-per-node=8 --wait
    --executor gke      submit a JobSet with kubectl, made of launch/gke_jobset.yaml
    --dry_run           print what would be submitted or run

    --search METRIC --trials N [--sampler tpe|random]
                        search with Optuna instead: `get_search(trial)` of the recipe returns the
                        changes of a trial, and unpromising trials are stopped early; see
                        docs/sweeps.md. Needs the extra [search]
"""

import logging
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.paths import as_local_path

if TYPE_CHECKING:
    from vit_jax.sweeping.variants import Variant

EXIT_FAILED = 1

logger = logging.getLogger(__name__)

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the sweep, local or gs://.", required=True
)
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "slurm", "gke"], "Where to train.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be submitted or run.")
_LIST = flags.DEFINE_bool("list", False, "Print the variants, their state and cost.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Slice for --list, as v5e:4x4: prints hours.")
_INDEX = flags.DEFINE_integer(
    "index", None, "Train this variant alone, in this process: for tasks of arrays.", lower_bound=0
)
_SEARCH = flags.DEFINE_string("search", None, "Metric to search for, as zeroshot/NAME/top1.")
_TRIALS = flags.DEFINE_integer("trials", 20, "Trials of --search.", lower_bound=1)
_SAMPLER = flags.DEFINE_string("sampler", "tpe", "Sampler of --search: tpe or random.")
_TEMPLATE = flags.DEFINE_string(
    "template", None, "Script or manifest to submit, by default that of the folder launch."
)
_ACCELERATOR = flags.DEFINE_string("accelerator", "tpu", "JobSet of the manifest: tpu or gpu.")


def main(arguments: Sequence[str]) -> None:
    """Trains, submits or lists the variants."""
    from vit_jax.sweeping.variants import FINISHED, load_variants
    from vit_jax.workdir import workdir_path

    if arguments and _EXECUTOR.value != "slurm":
        raise UserError(f"unexpected argument {arguments[0]!r}: every option starts with --")
    workdir = str(workdir_path(str(_WORKDIR.value)))
    recipe = str(_CONFIG.value)
    if _SEARCH.value is not None:
        _search(recipe, workdir)
        return
    variants = load_variants(recipe, cli.config_overrides())
    states = [variant.state(workdir) for variant in variants]
    if _INDEX.value is not None:
        _become(variants, states, _INDEX.value, workdir)
    elif _LIST.value:
        _print_list(variants, states)
    else:
        left = [i for i, state in enumerate(states) if state != FINISHED]
        logger.info("%d of %d variants are finished", len(variants) - len(left), len(variants))
        _train(variants, left, workdir, arguments)


def _search(recipe: str, workdir: str) -> None:
    """Searches and prints the trials."""
    from vit_jax.reporting.tables import format_rows
    from vit_jax.sweeping import search

    if _EXECUTOR.value != "local" or _LIST.value or _DRY_RUN.value or _INDEX.value is not None:
        raise UserError("--search trains on this machine: it excludes --executor, --list, --index")
    study = search.search(
        recipe,
        cli.config_overrides(),
        workdir,
        metric=str(_SEARCH.value),
        trials=_TRIALS.value,
        sampler=_SAMPLER.value,
    )
    print(format_rows(search.table(study)))


def _become(variants: Sequence["Variant"], states: Sequence[str], index: int, workdir: str) -> None:
    """Replaces this process by the training of one variant."""
    from vit_jax.sweeping.local import train_command
    from vit_jax.sweeping.variants import FINISHED

    if index >= len(variants):
        raise UserError(f"--index={index}: the sweep has the variants 0 to {len(variants) - 1}")
    if states[index] == FINISHED:
        logger.info("%s is finished", variants[index].name)
        return
    command = train_command(variants[index], workdir)
    os.execv(command[0], command)


def _train(
    variants: Sequence["Variant"], left: Sequence[int], workdir: str, options: Sequence[str]
) -> None:
    chosen = [f"--config={_CONFIG.value}", f"--workdir={workdir}"]
    chosen += [f"--config.{override}" for override in cli.config_overrides()]
    failed: dict[str, int] = {}
    if _EXECUTOR.value == "local":
        from vit_jax.sweeping import local

        if _DRY_RUN.value:
            for i in left:
                print(shlex.join(local.train_command(variants[i], workdir)))
            return
        failed = local.train_all([variants[i] for i in left], workdir)
    elif left:
        submitted = _submit(len(variants), left, chosen, workdir, options)
        if not submitted:
            return
    _print_result(variants, failed, workdir)


def _submit(
    count: int, left: Sequence[int], chosen: Sequence[str], workdir: str, options: Sequence[str]
) -> bool:
    """Submits variants. Returns whether they have ended."""
    if _EXECUTOR.value == "gke":
        from vit_jax.sweeping import gke

        template = _template(gke.MANIFEST)
        name = pathlib.PurePath(workdir).name.lower().replace("_", "-")
        jobset = gke.manifest(template, _ACCELERATOR.value, name, count, chosen)
        if _DRY_RUN.value:
            print(gke.to_yaml(jobset), end="")
        else:
            gke.apply(jobset)
        return False
    from vit_jax.sweeping import slurm

    script = _template(slurm.SCRIPT)
    command = slurm.submit_command(left, chosen, options, script)
    if _DRY_RUN.value:
        print(shlex.join(command))
        return False
    slurm.submit(command)
    return "--wait" in options


def _template(default: pathlib.Path) -> pathlib.Path:
    """The script or manifest of --template."""
    if _TEMPLATE.value is None:
        return default
    return as_local_path(_TEMPLATE.value, "it is read by another program")


def _print_list(variants: Sequence["Variant"], states: Sequence[str]) -> None:
    from vit_jax.planning import topologies
    from vit_jax.reporting.tables import format_rows
    from vit_jax.sweeping.cost import training_cost

    if _TOPOLOGY.value is not None:
        topologies.prepare_platform(_TOPOLOGY.value)
    rows = [["index", "variant", "state", "EFLOPs", *(["hours"] if _TOPOLOGY.value else [])]]
    for i, (variant, state) in enumerate(zip(variants, states, strict=True)):
        cost = training_cost(variant, _TOPOLOGY.value)
        hours = "unknown" if cost.hours is None else f"{cost.hours:.2f}"
        row = [str(i), variant.name, state, f"{cost.flops / 1e18:.3g}"]
        rows.append([*row, *([hours] if _TOPOLOGY.value else [])])
    print(format_rows(rows))


def _print_result(variants: Sequence["Variant"], failed: dict[str, int], workdir: str) -> None:
    """Prints the table of the finished variants and names the others."""
    from vit_jax.reporting.groups import group_rows, group_seeds
    from vit_jax.reporting.runs import read_run
    from vit_jax.reporting.tables import format_rows
    from vit_jax.sweeping.variants import FINISHED

    states = {v.name: v.state(workdir) for v in variants}
    finished = [v for v in variants if states[v.name] == FINISHED]
    if finished:
        groups = group_seeds([read_run(f"{workdir}/{v.name}") for v in finished])
        print(format_rows(group_rows(groups)))
    missing = [name for name, state in states.items() if state != FINISHED]
    for name in missing:
        code = f"exit code {failed[name]}" if name in failed else "not finished"
        print(f"{name}: {code}", file=sys.stderr)
    if missing:
        sys.exit(EXIT_FAILED)
    cli.suggest(f"vit-jax report {shlex.quote(workdir)}/*")


if __name__ == "__main__":
    cli.run_with_arguments(main)
