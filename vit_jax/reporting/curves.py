"""Curves of metrics that can be hovered, switched off and smoothed in a browser, with Bokeh."""

from collections.abc import Sequence

import numpy as np
from bokeh.layouts import column
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    HoverTool,
    LayoutDOM,
)
from bokeh.models.widgets import RadioButtonGroup, Slider
from bokeh.palettes import Category10
from bokeh.plotting import figure

from vit_jax.reporting.groups import Group
from vit_jax.reporting.runs import Curve, RunRecord

_AXES = ("step", "examples", "training hours")
_HEIGHT = 260  # px
_RATE = "examples_per_second"

# Positions on the chosen axis, and an exponential moving average corrected at its start.
_UPDATE = """
for (const source of sources) {
  const data = source.data, beta = smoothing.value;
  data.x = data[axes.labels[axes.active]];
  let mean = 0, weight = 0;
  data.y = data.value.map(value => {
    mean = beta * mean + (1 - beta) * value;
    weight = beta * weight + (1 - beta);
    return mean / weight;
  });
  source.change.emit();
}
for (const axis of labels) axis.axis_label = axes.labels[axes.active];
"""


def curves(groups: Sequence[Group], metrics: Sequence[str]) -> LayoutDOM:
    """Plots metrics, one panel per metric, one line per run, one colour per group.

    Args:
        groups: groups of runs.
        metrics: names of metrics; those without two points are left out.

    Returns:
        The panels below the controls of their axis and smoothing.
    """
    sources: list[ColumnDataSource] = []
    panels = []
    for metric in metrics:
        if any(
            len(run.curves[metric].steps) > 1
            for g in groups
            for run in g.runs
            if metric in run.curves
        ):
            panels.append(_panel(metric, groups, sources))
    axes = RadioButtonGroup(labels=list(_AXES), active=0)
    smoothing = Slider(start=0, end=0.99, step=0.01, value=0, title="smoothing")
    update = CustomJS(
        args={
            "sources": sources,
            "axes": axes,
            "smoothing": smoothing,
            "labels": [panel.xaxis[0] for panel in panels],
        },
        code=_UPDATE,
    )
    axes.js_on_change("active", update)
    smoothing.js_on_change("value", update)
    return column(axes, smoothing, *panels, sizing_mode="stretch_width")


def _panel(metric: str, groups: Sequence[Group], sources: list[ColumnDataSource]) -> figure:
    panel = figure(
        title=metric,
        height=_HEIGHT,
        sizing_mode="stretch_width",
        x_axis_label=_AXES[0],
        tools="pan,box_zoom,wheel_zoom,reset,save",
        output_backend="svg",
    )
    palette = Category10[10]
    for number, group in enumerate(groups):
        for run in group.runs:
            if metric not in run.curves:
                continue
            source = ColumnDataSource(_columns(run, run.curves[metric]))
            sources.append(source)
            panel.line(
                "x", "y", source=source, color=palette[number % len(palette)],
                legend_label=group.name, name=run.name, line_width=1.5,
            )  # fmt: skip
    panel.add_tools(
        HoverTool(tooltips=[("run", "$name"), ("step", "@step"), (metric, "@value{0.0000}")])
    )
    panel.legend.click_policy = "hide"
    panel.legend.label_text_font_size = "8pt"
    panel.legend.background_fill_alpha = 0.6
    return panel


def _columns(run: RunRecord, curve: Curve) -> dict[str, np.ndarray]:
    steps, values = np.array(curve.steps), np.array(curve.values)
    examples = steps * int(run.config.get("batch_size", 0))
    hours = training_hours(run, steps)
    names = dict(zip(_AXES, (steps, examples, hours), strict=True))
    return {"x": steps, "y": values, "value": values, **names}


def training_hours(run: RunRecord, steps: np.ndarray) -> np.ndarray:
    """Hours of training until steps, by the rates that were logged; without evaluations and starts.

    Args:
        run: run with the metric `examples_per_second`; zeros without it.
        steps: training steps in ascending order.
    """
    if _RATE not in run.curves:
        return np.zeros(len(steps))
    rate = run.curves[_RATE]
    logged = np.array([0, *rate.steps])
    examples = np.diff(logged) * int(run.config.get("batch_size", 0))
    hours = np.cumsum([0, *(examples / np.array(rate.values) / 3600)])
    return np.interp(steps, logged, hours)
