"""Compares runs.

    python -m vit_jax.report RUN [RUN ...] [--plots DIR]

Prints the config keys that differ and the last value of each metric, one column per run. --plots
also plots each metric over training steps to DIR/curves.png; it needs the extra [report].
"""

from collections.abc import Sequence

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.paths import as_path

_PLOTS = flags.DEFINE_string("plots", None, "Folder for plots; default: no plots.")


def report(workdirs: Sequence[str], plots: str | None) -> None:
    """Prints the tables and draws the plots.

    Args:
        workdirs: folders of the runs.
        plots: folder for `curves.png`; None for no plots.
    """
    if not workdirs:
        raise UserError("no run: expected one or more folders of runs")
    # These modules import JAX, which a command without a run does not need.
    from vit_jax.reporting.runs import read_run
    from vit_jax.reporting.tables import config_rows, format_table, metric_rows

    runs = [read_run(workdir) for workdir in workdirs]
    if len(runs) > 1:
        print(format_table("config", runs, config_rows(runs)), end="\n\n")
    print(format_table("last metrics", runs, metric_rows(runs)))
    if plots is not None:
        from vit_jax.reporting.plots import plot_curves

        path = as_path(plots) / "curves.png"
        plot_curves(runs, path)
        print(f"\n{path}")


if __name__ == "__main__":
    cli.run_with_arguments(lambda workdirs: report(workdirs, _PLOTS.value))
