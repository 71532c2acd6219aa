"""Curves of whole evaluations: calibration of classifiers, precision and recall of detectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.palettes import Category10
from bokeh.plotting import figure
from jaxtyping import Float, Int

from vit_jax.evaluators import metrics
from vit_jax.evaluators.predictions import Arrays

BINS = 15

_HEIGHT = 380  # px
_COLORS = Category10[10]


def reliability(
    arrays: Arrays,
) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"], Int[np.ndarray, " bins"], float]:
    """Compares the confidence of predictions with their accuracy (Guo et al. 2017, section 2).

    Args:
        arrays: stored predictions of the kind "classification".

    Returns:
        Mean confidence, accuracy and number of predictions of each bin that is not empty, and the
        expected calibration error of all.
    """
    confidence = np.clip(arrays["probability"][:, 0], 0, 1)
    correct = arrays["top"][:, 0] == arrays["label"]
    sums, hits, counts = metrics.calibration_bins(confidence, correct, BINS)
    full = counts > 0
    error = metrics.expected_calibration_error(confidence, correct, BINS)
    return sums[full] / counts[full], hits[full] / counts[full], counts[full], error


def plot_reliability(found: Sequence[tuple[str, int, Arrays]]) -> figure:
    """Draws the reliability diagram of several runs.

    Args:
        found: name of the variant, its number and the stored predictions of each run.
    """
    plot = _square("mean confidence", "accuracy")
    plot.line([0, 1], [0, 1], color="#999", line_dash="dashed")
    for name, number, arrays in found:
        confidence, accuracy, counts, error = reliability(arrays)
        source = ColumnDataSource({"x": confidence, "y": accuracy, "count": counts})
        label = f"{name} (ECE {error:.3f})"
        color = _COLORS[number % len(_COLORS)]
        style: dict[str, Any] = {"color": color, "legend_label": label}
        plot.line("x", "y", source=source, **style)
        points = plot.scatter("x", "y", source=source, size=7, **style)
        tips = [("confidence", "@x{0.000}"), ("accuracy", "@y{0.000}"), ("examples", "@count")]
        plot.add_tools(HoverTool(renderers=[points], tooltips=tips))
    plot.legend.location = "top_left"
    return _finished(plot)


def plot_precision(found: Sequence[tuple[str, int, Arrays]]) -> figure:
    """Draws precision over recall at an IoU of 0.5, the mean over classes, of several runs.

    Args:
        found: name of the variant, its number and the stored predictions of each run.
    """
    plot = _square("recall", "precision at IoU 0.5")
    for name, number, arrays in found:
        source = ColumnDataSource({"x": arrays["recall"], "y": arrays["precision_50"]})
        mean = float(np.mean(arrays["precision_50"])) if len(arrays["recall"]) else 0.0
        line = plot.line(
            "x", "y", source=source, line_width=1.5, color=_COLORS[number % len(_COLORS)],
            legend_label=f"{name} (AP50 {mean:.3f})",
        )  # fmt: skip
        tips = [("recall", "@x{0.00}"), ("precision", "@y{0.000}")]
        plot.add_tools(HoverTool(renderers=[line], tooltips=tips))
    return _finished(plot)


def _square(x: str, y: str) -> figure:
    return figure(
        x_range=Range1d(start=-0.02, end=1.02), y_range=Range1d(start=-0.02, end=1.02),
        x_axis_label=x, y_axis_label=y,
        height=_HEIGHT, max_width=640, sizing_mode="stretch_width", toolbar_location=None,
        output_backend="svg",
    )  # fmt: skip


def _finished(plot: figure) -> figure:
    plot.legend.click_policy = "hide"
    plot.legend.label_text_font_size = "8pt"
    plot.legend.background_fill_alpha = 0.6
    return plot
