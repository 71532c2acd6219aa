"""Runs that differ by their seed alone, as one column with mean and standard deviation."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from vit_jax.reporting.runs import RunRecord, metric_names
from vit_jax.reporting.tables import format_value

SEED = "seed"


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one config with several seeds.

    Attributes:
        name: what the names of the runs have in common.
        runs: the runs.
    """

    name: str
    runs: list[RunRecord]

    def values(self, metric: str) -> list[float]:
        """Last values of a metric, of the runs that have it."""
        return [run.last_values[metric] for run in self.runs if metric in run.curves]

    def by_seed(self, metric: str) -> dict[Any, float]:
        """Last value of a metric by seed, of the runs that have it; of equal seeds the last run."""
        return {
            run.config.get(SEED): run.last_values[metric]
            for run in self.runs
            if metric in run.curves
        }

    def describe(self, metric: str) -> str:
        """Mean of a metric, with its standard deviation where there are several seeds."""
        values = self.values(metric)
        if not values:
            return "-"
        if len(values) == 1:
            return format_value(values[0])
        deviation = statistics.stdev(values)
        return f"{format_value(statistics.fmean(values))} +- {format_value(deviation)}"


def group_seeds(runs: Sequence[RunRecord]) -> list[Group]:
    """Groups runs whose configs differ by the seed alone, in order of first appearance.

    Args:
        runs: runs of any configs.
    """
    groups: list[Group] = []
    for run in runs:
        config = _without_seed(run)
        found = next((group for group in groups if _without_seed(group.runs[0]) == config), None)
        if found is None:
            groups.append(Group(run.name, [run]))
        else:
            found.runs.append(run)
    return [Group(_common_name(group.runs), group.runs) for group in groups]


def group_rows(groups: Sequence[Group]) -> list[list[str]]:
    """Lists the last values of all metrics: mean, and standard deviation where there are seeds.

    Args:
        groups: groups of runs.

    Returns:
        Rows of cells, the first one the header.
    """
    names = metric_names(run for group in groups for run in group.runs)
    rows = [[name, *(group.describe(name) for group in groups)] for name in names]
    return [["last metrics", *group_header(groups)], *rows]


def group_header(groups: Sequence[Group]) -> list[str]:
    """Names of groups, with their numbers of seeds if some have several."""
    if all(len(group.runs) == 1 for group in groups):
        return [group.name for group in groups]
    return [f"{group.name} ({len(group.runs)} seeds)" for group in groups]


def _without_seed(run: RunRecord) -> dict:
    return {key: value for key, value in run.config.items() if key != SEED}


def _common_name(runs: Sequence[RunRecord]) -> str:
    """Name of a group: that of its first run without the seed."""
    return runs[0].name.removesuffix(f",{SEED}={runs[0].config.get(SEED)}")
