"""Confusion between the classes that a model confuses most."""

import numpy as np
from bokeh.models import ColumnDataSource, FactorRange
from bokeh.palettes import Blues256
from bokeh.plotting import figure
from bokeh.transform import linear_cmap
from jaxtyping import Int

from vit_jax.evaluators.predictions import Arrays

MOST = 12
"""Number of classes in a matrix."""

_CELL = 34  # px


def most_confused(
    label: Int[np.ndarray, " examples"], predicted: Int[np.ndarray, " examples"]
) -> Int[np.ndarray, " chosen"]:
    """Chooses the classes of the most frequent pairs of a correct and another, predicted class.

    Args:
        label: correct class of each example.
        predicted: predicted class of each example.

    Returns:
        At most `MOST` classes in ascending order: all that occur, if they are not more.
    """
    present = np.union1d(label, predicted)
    if len(present) <= MOST:
        return present
    wrong = label != predicted
    pairs, counts = np.unique(np.stack([label, predicted])[:, wrong], axis=1, return_counts=True)
    chosen: list[int] = []
    for pair in pairs.T[np.argsort(-counts, kind="stable")]:
        new = [each for each in pair.tolist() if each not in chosen]
        if len(chosen) + len(new) <= MOST:
            chosen += new
    return np.array(sorted(chosen or present[:MOST].tolist()))


def matrix(
    label: Int[np.ndarray, " examples"],
    predicted: Int[np.ndarray, " examples"],
    classes: Int[np.ndarray, " chosen"],
) -> Int[np.ndarray, "chosen chosen"]:
    """Counts the predictions of some classes.

    Args:
        label: correct class of each example.
        predicted: predicted class of each example.
        classes: classes in ascending order; examples of others are left out.

    Returns:
        Counts by correct and by predicted class.
    """
    inside = np.isin(label, classes) & np.isin(predicted, classes)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    places = (np.searchsorted(classes, each[inside]) for each in (label, predicted))
    np.add.at(counts, tuple(places), 1)
    return counts


def plot_confusion(arrays: Arrays, title: str) -> figure:
    """Draws the confusion matrix of the most confused classes, shaded by fraction of a row.

    Args:
        arrays: stored predictions of the kind "classification".
        title: title of the plot.
    """
    label, predicted = arrays["label"], arrays["top"][:, 0]
    classes = most_confused(label, predicted)
    counts = matrix(label, predicted, classes)
    totals = np.bincount(label, minlength=classes.max() + 1)[classes]
    # Names may occur twice, and factors may not.
    names = [f"{arrays['class'][i]}"[:24] + "\u200b" * n for n, i in enumerate(classes.tolist())]
    rows, columns = counts.nonzero()
    source = ColumnDataSource(
        {
            "true": [names[i] for i in rows],
            "predicted": [names[i] for i in columns],
            "count": counts[rows, columns],
            "fraction": counts[rows, columns] / np.maximum(totals[rows], 1),
        }
    )
    plot = figure(
        title=title,
        x_range=FactorRange(factors=names),
        y_range=FactorRange(factors=names[::-1]),
        width=180 + _CELL * len(names),
        height=160 + _CELL * len(names),
        sizing_mode="scale_width",
        max_width=640,
        toolbar_location=None,
        tooltips=[("true", "@true"), ("predicted", "@predicted"), ("examples", "@count"),
                  ("of the true class", "@fraction{0.0%}")],
        x_axis_label="predicted",
        y_axis_label="true",
    )  # fmt: skip
    fill = linear_cmap("fraction", Blues256[::-1], 0, 1)
    plot.rect("predicted", "true", 1, 1, source=source, fill_color=fill, line_color=None)
    plot.text(
        "predicted", "true", "count", source=source, text_align="center", text_baseline="middle",
        text_font_size="8pt", text_color=linear_cmap("fraction", ["#222", "#fff"], 0, 1),
    )  # fmt: skip
    plot.xaxis.major_label_orientation = 1.0
    plot.grid.grid_line_color = None
    return plot
