"""The comparison of runs as one HTML file, which needs no network.

Needs Bokeh and Jinja, the extra [report].
"""

from collections.abc import Sequence

import numpy as np

from vit_jax import provenance
from vit_jax.atomic_files import write_text
from vit_jax.errors import UserError
from vit_jax.paths import StrPath
from vit_jax.reporting.comparison import (
    Difference,
    difference,
    evaluation_metrics,
    lower_is_better,
)
from vit_jax.reporting.groups import Group
from vit_jax.reporting.runs import RunRecord, metric_names
from vit_jax.reporting.tables import config_rows

try:
    import jinja2
    import markupsafe
    from bokeh.embed import components
    from bokeh.resources import Resources
except ImportError:
    raise UserError("--html needs Bokeh and Jinja: pip install 'vit_jax[report]'") from None

Cell = str | markupsafe.Markup

_MOST_CHANGES = 20_000  # characters of uncommitted changes that are shown


def write_page(groups: Sequence[Group], path: StrPath, title: str) -> None:
    """Writes the page.

    Args:
        groups: groups of runs; the others are compared with the first one.
        path: HTML file, local or in a bucket.
        title: title of the page.
    """
    from vit_jax.reporting.curves import curves
    from vit_jax.reporting.sections import sections

    reference, *others = groups
    chosen = evaluation_metrics(groups)
    names = metric_names(run for group in groups for run in group.runs)
    training = [name for name in names if name not in chosen]
    looks = sections(groups)
    plots = [curves(groups, [*chosen, *training]), *(plot for look in looks for plot in look.plots)]
    script, places = components(plots)
    place = iter(places)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vit_jax.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["table"] = _table
    page = environment.get_template("report.html.jinja").render(
        title=title,
        scripts=Resources(mode="inline", components=["bokeh", "bokeh-widgets"]).render() + script,
        runs=sum(len(group.runs) for group in groups),
        groups=[f"{group.name} ({len(group.runs)})" for group in groups],
        reference=reference.name,
        others=[group.name for group in others],
        config_rows=config_rows([group.runs[0] for group in groups]),
        metric_rows=[[name, *(group.describe(name) for group in groups)] for name in chosen],
        difference_rows=[
            [name, *(_cell(difference(group, reference, name), name) for group in others)]
            for name in chosen
        ]
        if others
        else [],
        curves=next(place),
        sections=[(look, [next(place) for _ in look.plots]) for look in looks],
        cost_rows=[_cost(group) for group in groups],
        start_header=_START,
        start_rows=[_start(run) for group in groups for run in group.runs if run.starts],
        changes=_changes(groups).values(),
        other_rows=[[name, *(group.describe(name) for group in groups)] for name in training],
    )
    write_text(path, page)


def _table(header: Sequence[Cell], rows: Sequence[Sequence[Cell]]) -> markupsafe.Markup:
    """An HTML table that scrolls sideways where it is too wide."""

    def row(cells: Sequence[Cell], tag: str) -> markupsafe.Markup:
        name = markupsafe.Markup("/<wbr>").join(cells[0].split("/"))  # may break on phones
        items = [markupsafe.Markup(f"<{tag}>%s</{tag}>") % cell for cell in (name, *cells[1:])]
        return markupsafe.Markup("<tr>%s</tr>") % markupsafe.Markup("").join(items)

    lines = markupsafe.Markup("\n").join([row(header, "th"), *(row(cells, "td") for cells in rows)])
    return markupsafe.Markup('<div class="scroll"><table>\n%s\n</table></div>') % lines


def _cell(found: Difference | None, metric: str) -> Cell:
    if found is None:
        return "-"
    if found.interval is None:
        return f"{found.mean:+.4f} (one seed)"
    low, high = found.interval
    text = f"{found.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    if found.is_noise:
        return markupsafe.Markup('<span class="noise">%s noise</span>') % text
    kind = "worse" if (found.mean > 0) == lower_is_better(metric) else "better"
    return markupsafe.Markup(f'<span class="{kind}">%s</span>') % text


_START = (
    "run", "starts", "last start", "devices", "processes", "host", "commit", "versions", "command",
)  # fmt: skip


def _start(run: RunRecord) -> list[Cell]:
    """Environment of the last start of a run."""
    start = run.starts[-1]
    commit = (start["commit"] or "none")[:10] + (" and changes" if "changes" in start else "")
    packages = {"python": start["python"], **start["packages"]}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    counts = str(len(run.starts)), start["time"], start["devices"], str(start["processes"])
    return [run.name, *counts, start["host"], commit, versions, start["command"]]


def _changes(groups: Sequence[Group]) -> dict[str, tuple[list[str], str]]:
    """Uncommitted changes of the last starts: names of the runs and text by name of the file."""
    found: dict[str, tuple[list[str], str]] = {}
    for run in (run for group in groups for run in group.runs):
        name = run.starts[-1].get("changes") if run.starts else None
        if name is None or run.workdir is None:
            continue
        path = run.workdir / provenance.FOLDER / name
        if name not in found and path.is_file():
            text = path.read_bytes().decode(errors="replace")
            left = len(text) - _MOST_CHANGES
            more = f"\n... {left:,} more characters in {path}" if left > 0 else ""
            found[name] = [], text[:_MOST_CHANGES] + more
        if name in found:
            found[name][0].append(run.name)
    return found


def _cost(group: Group) -> list[Cell]:
    """Mean cost of the runs of a group."""
    from vit_jax.reporting.curves import training_hours

    steps = [
        max(step for curve in run.curves.values() for step in curve.steps) for run in group.runs
    ]
    sizes = [int(run.config.get("batch_size", 0)) for run in group.runs]
    examples = float(np.mean(np.multiply(steps, sizes)))
    pairs = zip(group.runs, steps, strict=True)
    hours = float(np.mean([training_hours(run, np.array([step]))[0] for run, step in pairs]))
    rate = f"{examples / hours / 3600:.1f}" if hours else "-"
    return [group.name, f"{examples:,.0f}", f"{hours:.2f}" if hours else "-", rate]
