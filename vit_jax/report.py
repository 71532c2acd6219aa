"""Compares runs: python -m vit_jax.report RUN [RUN ...] [--plots DIR]

Prints which config keys differ and the last value of every metric, side by side. With `--plots`,
also draws every metric over the steps of training into `DIR/curves.png` (extra [docs]).
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from flax import traverse_util

from vit_jax import cli
from vit_jax.errors import UserError

_PLOTS = flags.DEFINE_string("plots", None, "Folder for plots; none by default.")

METRICS_FILE = "metrics.jsonl"
_ABSENT = "-"
_COLUMNS = 3  # of plots


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder tells.

    Attributes:
        name: of the folder.
        config: key -> value, nested keys joined by ".".
        curves: metric -> (steps, values), in the order of training.
    """

    name: str
    config: dict[str, Any]
    curves: dict[str, tuple[list[int], list[float]]]

    @property
    def figures(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: values[-1] for name, (_, values) in self.curves.items()}


def read_run(workdir: str | pathlib.Path) -> Run:
    """Reads a run's config and metrics.

    Raises:
        UserError: the folder is not that of a run, or its metrics cannot be read.
    """
    # Imports JAX, which a mistyped folder need not wait for.
    from vit_jax.workdir import load_config

    path = pathlib.Path(workdir)
    config = traverse_util.flatten_dict(load_config(path).to_dict(), sep=".")
    curves: dict[str, dict[int, float]] = {}
    metrics = path / METRICS_FILE
    if not metrics.is_file():
        raise UserError(f"{path} has no {METRICS_FILE} yet: the run has written no figures")
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):  # being written, or cut short by a kill
            continue
        try:
            row = json.loads(line)
            step = row.pop("step")
        except (json.JSONDecodeError, KeyError):
            raise UserError(f"{metrics}, line {number}: expected an object with a step") from None
        for name, value in row.items():
            # Steps that a resumed run did again count once.
            curves.setdefault(name, {})[step] = value
    ordered = {name: sorted(curve.items()) for name, curve in curves.items()}
    return Run(
        name=path.resolve().name,
        config=config,
        curves={
            name: ([step for step, _ in points], [value for _, value in points])
            for name, points in ordered.items()
        },
    )


def config_rows(runs: Sequence[Run]) -> list[list[str]]:
    """The keys that differ between runs, with their value in each."""
    keys = sorted({key for run in runs for key in run.config})
    rows = [[key, *(str(run.config.get(key, _ABSENT)) for run in runs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def metric_rows(runs: Sequence[Run]) -> list[list[str]]:
    """The last value of every metric in each run, in the order of their first appearance."""
    names = dict.fromkeys(name for run in runs for name in run.curves)
    return [
        [name, *(_number(run.figures[name]) if name in run.figures else _ABSENT for run in runs)]
        for name in names
    ]


def _number(value: float) -> str:
    return f"{value:.4g}" if value and abs(value) < 1e-3 else f"{value:.4f}"


def table(title: str, runs: Sequence[Run], rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, one column a run."""
    cells = [[title, *(run.name for run in runs)], *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(runs) + 1)]
    lines = []
    for row in cells:
        first, *others = (cell for cell in row)
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)


def plot_curves(runs: Sequence[Run], path: pathlib.Path) -> None:
    """Draws every metric that some run has at two steps or more, all runs in one panel.

    Args:
        runs: to compare.
        path: of the PNG file.

    Raises:
        UserError: matplotlib is not installed, or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install -e '.[docs]'") from None
    drawable: Callable[[str], bool] = lambda name: any(  # noqa: E731
        len(run.curves.get(name, ([], []))[0]) > 1 for run in runs
    )
    names = [name for name in dict.fromkeys(n for r in runs for n in r.curves) if drawable(name)]
    if not names:
        raise UserError("nothing to draw: no figure has been written at two steps or more")
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(5 * _COLUMNS, 3 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for name, panel in zip(names, panels, strict=False):
        for run in runs:
            if name in run.curves:
                panel.plot(*run.curves[name], label=run.name)
        panel.set_title(name)
        panel.set_xlabel("step")
    for panel in list(panels)[len(names) :]:
        panel.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def report(workdirs: Sequence[str], plots: str | None) -> None:
    """Prints the tables and draws the plots.

    Args:
        workdirs: of the runs.
        plots: folder for `curves.png`; None for none.
    """
    if not workdirs:
        raise UserError("no run: expected one or more folders of runs")
    runs = [read_run(workdir) for workdir in workdirs]
    if len(runs) > 1:
        print(table("config", runs, config_rows(runs)), end="\n\n")
    print(table("last figures", runs, metric_rows(runs)))
    if plots is not None:
        path = pathlib.Path(plots) / "curves.png"
        plot_curves(runs, path)
        print(f"\n{path}")


if __name__ == "__main__":
    cli.run_with_arguments(lambda workdirs: report(workdirs, _PLOTS.value))
