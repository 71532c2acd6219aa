"""Tables for papers and pages: LaTeX with booktabs, and Markdown."""

import html
from collections.abc import Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.reporting.comparison import evaluation_metrics, lower_is_better
from vit_jax.reporting.groups import Group, group_header

FORMATS = ("latex", "markdown")


def paper_table(groups: Sequence[Group], kind: str) -> str:
    r"""Formats the last metrics of evaluations: mean ± standard deviation, the best in bold.

    Args:
        groups: groups of runs, a column each.
        kind: "latex" (needs `\usepackage{booktabs}`) or "markdown".

    Returns:
        The table, which ends without a newline.

    Raises:
        UserError: no run has metrics of an evaluation, or pandas is not installed.
    """
    names = evaluation_metrics(groups)
    if not names:
        raise UserError("no table: expected runs with metrics of evaluations, as zeroshot/x/top1")
    cells = [[group.describe(name).replace("+-", "±") for group in groups] for name in names]
    best = [best_of(groups, name) for name in names]
    table = _latex if kind == "latex" else _markdown
    return table(names, _unique(group_header(groups)), cells, best)


def best_of(groups: Sequence[Group], metric: str) -> list[bool]:
    """Whether each group has the best mean of a metric; none where all means are equal.

    Args:
        groups: groups of runs.
        metric: name of the metric.
    """
    means = [float(np.mean(group.values(metric) or np.nan)) for group in groups]
    known = {mean for mean in means if not np.isnan(mean)}
    if len(known) < 2:
        return [False] * len(groups)
    best = min(known) if lower_is_better(metric) else max(known)
    return [mean == best for mean in means]


def _latex(
    names: list[str], header: list[str], cells: list[list[str]], best: list[list[bool]]
) -> str:
    try:
        import pandas as pd
    except ImportError:
        raise UserError("--table latex needs pandas: pip install 'vit_jax[report]'") from None
    bold = np.where(best, "textbf: --rwrap;", "")
    styler = pd.DataFrame(cells, names, header).style.format(escape="latex")
    for axis in (0, 1):
        styler = styler.format_index(escape="latex", axis=axis)
    styler = styler.apply(lambda _: bold, axis=None)
    return styler.to_latex(hrules=True, column_format="l" + "r" * len(header)).rstrip()


def _markdown(
    names: list[str], header: list[str], cells: list[list[str]], best: list[list[bool]]
) -> str:
    rows = [["metric", *header], ["---", *("---:" for _ in header)]]
    for name, values, marks in zip(names, cells, best, strict=True):
        shown = (f"**{v}**" if mark else v for v, mark in zip(values, marks, strict=True))
        rows.append([name, *shown])
    # No library escapes cells of Markdown.
    return "\n".join(
        f"| {' | '.join(html.escape(cell).replace('|', '&#124;') for cell in row)} |"
        for row in rows
    )


def _unique(names: Sequence[str]) -> list[str]:
    """Numbers names that occur again: columns of a table have different names."""
    return [
        f"{name} #{again + 1}" if (again := names[:i].count(name)) else name
        for i, name in enumerate(names)
    ]
