"""Compares runs.

    python -m vit_jax.report RUN [RUN ...] [--html FILE] [--plots DIR] [--baseline RUN]

Prints the config keys that differ and the last value of each metric, one column per run.

    --html FILE      write one page that needs no network: config differences, metrics with mean and
                     standard deviation over seeds, differences to the first variant with confidence
                     intervals, curves, cost. Needs the extra [report]
    --recompute      evaluate the newest checkpoint of each run again: store its predictions, with
                     attention, similarity of positions and masked reconstructions, for the page
    --table FORMAT   print a table of the evaluations instead, "latex" (booktabs) or "markdown":
                     mean and standard deviation over seeds, the best in bold
    --plots DIR      plot each metric over steps to DIR/curves.png. Needs the extra [report]
    --baseline RUN   compare with this run, and with those that differ from it by their seed alone:
                     the exit code is 3 if a metric of an evaluation is worse by more than noise
"""

import sys
from collections.abc import Sequence

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.paths import as_path

EXIT_REGRESSION = 3

_HTML = flags.DEFINE_string("html", None, "File for a page of the comparison; default: no page.")
_BASELINE = flags.DEFINE_multi_string(
    "baseline", [], "Run to compare with; repeated for further seeds."
)
_RECOMPUTE = flags.DEFINE_bool("recompute", False, "Store predictions and views of the runs anew.")
_TABLE = flags.DEFINE_enum("table", None, ["latex", "markdown"], "Format of the printed table.")
_PLOTS = flags.DEFINE_string("plots", None, "Folder for plots; default: no plots.")


def report(
    workdirs: Sequence[str],
    plots: str | None = None,
    html: str | None = None,
    baseline: Sequence[str] = (),
    table: str | None = None,
    recompute: bool = False,
) -> list[str]:
    """Prints the tables, draws the plots and writes the page.

    Args:
        workdirs: folders of the runs.
        plots: folder for `curves.png`; None for no plots.
        html: file for the page; None for none.
        baseline: folders of runs of one config with different seeds, the first group of page and
            `table`.
        table: "latex" or "markdown" for a table of variants; None for one of runs.
        recompute: whether to evaluate the runs again, see `store_predictions`.

    Returns:
        Metrics that are worse than those of the baseline by more than noise, a line each.
    """
    if not workdirs:
        raise UserError("no run: expected one or more folders of runs")
    # These modules import JAX, which a command without a run does not need.
    from vit_jax.reporting.comparison import regressions
    from vit_jax.reporting.groups import group_seeds
    from vit_jax.reporting.runs import read_run
    from vit_jax.reporting.tables import config_rows, format_table, metric_rows

    runs = [read_run(workdir) for workdir in workdirs]
    reference = group_seeds([read_run(workdir) for workdir in baseline])
    if len(reference) > 1:
        names = ", ".join(group.name for group in reference)
        raise UserError(f"--baseline: expected runs that differ by their seed alone; found {names}")
    groups = group_seeds(runs)
    if table is not None:
        from vit_jax.reporting.paper_tables import paper_table

        print(paper_table([*reference, *groups], table))
    else:
        if len(runs) > 1:
            print(format_table("config", runs, config_rows(runs)), end="\n\n")
        print(format_table("last metrics", runs, metric_rows(runs)))
    if plots is not None:
        from vit_jax.reporting.plots import plot_curves

        path = as_path(plots) / "curves.png"
        plot_curves(runs, path)
        print(f"\n{path}")
    if recompute:
        for workdir in [*baseline, *workdirs]:
            store_predictions(workdir)
    if html is not None:
        from vit_jax.reporting.page import write_page

        write_page([*reference, *groups], html, "Comparison of runs")
        print(f"\n{html}")
    return regressions(groups, reference[0]) if reference else []


def store_predictions(workdir: str) -> None:
    """Evaluates the newest checkpoint of a run, and stores predictions and views of the model.

    The images of the views are those of the first evaluation, or else of training.

    Args:
        workdir: folder of the run.
    """
    from vit_jax.evaluation import open_run
    from vit_jax.reporting import views
    from vit_jax.workdir import load_config

    config, opened = load_config(workdir), open_run(workdir)
    suite = opened.suite(opened.evals)
    suite.run(opened.params)
    suite.save_predictions(workdir, config.eval_predictions)
    blocks = [block for named in opened.evals.values() for block in named.values()]
    specs = [block.get("data") or block.get("test") for block in blocks]
    spec = next(filter(None, specs), config.data.train)
    source = opened.embedder.open_source(spec)
    views.store(workdir, opened.embedder, opened.params, source, config.objective.to_dict())


def main(workdirs: Sequence[str]) -> None:
    """Reports the runs and exits with 3 if the baseline is better."""
    worse = report(
        workdirs, _PLOTS.value, _HTML.value, _BASELINE.value, _TABLE.value, _RECOMPUTE.value
    )
    for line in worse:
        print(line, file=sys.stderr)
    if worse:
        sys.exit(EXIT_REGRESSION)


if __name__ == "__main__":
    cli.run_with_arguments(main)
