"""Plots of metrics over training steps. Needs matplotlib, the extra [report]."""

from collections.abc import Sequence

from vit_jax.atomic_files import atomic_write
from vit_jax.errors import UserError
from vit_jax.paths import StrPath
from vit_jax.reporting.runs import RunRecord

try:
    from matplotlib.figure import Figure
except ImportError:
    raise UserError("plots need matplotlib: pip install 'vit_jax[report]'") from None

_COLUMNS = 3
_PANEL_INCHES = (5, 3)


def plot_curves(runs: Sequence[RunRecord], path: StrPath) -> None:
    """Plots each metric that some run has at two steps or more, one panel per metric.

    Args:
        runs: runs to compare.
        path: PNG file, local or in a bucket; its folder is created.

    Raises:
        UserError: there is nothing to plot.
    """
    names = list(
        dict.fromkeys(
            name for run in runs for name, curve in run.curves.items() if len(curve.steps) > 1
        )
    )
    if not names:
        raise UserError("nothing to plot: no metric has values at two steps or more")
    rows = -(-len(names) // _COLUMNS)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * _COLUMNS, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for name, panel in zip(names, panels, strict=False):
        for run in runs:
            if name in run.curves:
                panel.plot(run.curves[name].steps, run.curves[name].values, label=run.name)
        panel.set_title(name)
        panel.set_xlabel("step")
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    handles = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside upper center", ncols=4)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=100, format="png")
