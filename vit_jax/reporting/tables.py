"""Tables that compare runs, one column per run."""

from collections.abc import Sequence

from vit_jax.reporting.runs import RunRecord, metric_names

_ABSENT = "-"


def config_rows(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Lists the config keys that differ between runs.

    Returns:
        Rows of the key and its value in each run, sorted by key.
    """
    keys = sorted({key for run in runs for key in run.config})
    rows = [[key, *(str(run.config.get(key, _ABSENT)) for run in runs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def metric_rows(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Lists the last value of each metric.

    Returns:
        Rows of the metric and its value in each run, in order of first appearance.
    """
    last = [run.last_values for run in runs]
    return [
        [name, *(format_value(values[name]) if name in values else _ABSENT for values in last)]
        for name in metric_names(runs)
    ]


def format_table(title: str, runs: Sequence[RunRecord], rows: Sequence[Sequence[str]]) -> str:
    """Formats rows as text with aligned columns.

    Args:
        title: header of the first column.
        runs: runs, whose names are the headers of the other columns.
        rows: cells, as `config_rows` and `metric_rows` return them.
    """
    return format_rows([[title, *(run.name for run in runs)], *rows])


def format_rows(cells: Sequence[Sequence[str]]) -> str:
    """Formats cells as text with aligned columns.

    Args:
        cells: rows of cells, the first one the header.
    """
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join(
        "  ".join(
            [row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:], others, strict=True))]
        ).rstrip()
        for row in cells
    )


def format_value(value: float) -> str:
    """Formats a metric."""
    return f"{value:.4g}" if value and abs(value) < 1e-3 else f"{value:.4f}"
