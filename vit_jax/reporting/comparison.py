"""Whether a variant differs from another by more than the spread between seeds."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from vit_jax.reporting.groups import Group
from vit_jax.reporting.runs import metric_names

CONFIDENCE = 0.95
# Words in the names of metrics that are better when they are lower.
_LOWER_IS_BETTER = {"loss", "error", "ece", "rank", "perplexity"}


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference of a metric between two groups of runs.

    Attributes:
        mean: mean of the group minus that of the reference.
        interval: confidence interval of the mean; None with fewer than two seeds.
        paired: whether runs of the same seed were compared.
    """

    mean: float
    interval: tuple[float, float] | None
    paired: bool

    @property
    def is_noise(self) -> bool | None:
        """Whether the interval contains zero; None without an interval."""
        if self.interval is None:
            return None
        return self.interval[0] <= 0 <= self.interval[1]


def difference(group: Group, reference: Group, metric: str) -> Difference | None:
    """Compares the last values of a metric.

    Seeds that both groups have are compared in pairs (Student's t). Groups without two common seeds
    are compared as independent samples (Welch's t).

    Args:
        group: runs of a variant.
        reference: runs of another variant.
        metric: name of the metric.

    Returns:
        The difference; None if one of the groups has no value.
    """
    values, others = group.by_seed(metric), reference.by_seed(metric)
    if not values or not others:
        return None
    seeds = [seed for seed in values if seed in others]
    if len(seeds) > 1:
        deltas = np.array([values[seed] - others[seed] for seed in seeds])
        low, high = stats.t.interval(
            CONFIDENCE, len(deltas) - 1, deltas.mean(), max(stats.sem(deltas), 1e-300)
        )
        return Difference(float(deltas.mean()), (float(low), float(high)), paired=True)
    left, right = list(values.values()), list(others.values())
    mean = float(np.mean(left) - np.mean(right))
    if min(len(left), len(right)) < 2:
        return Difference(mean, None, paired=bool(seeds))
    found = stats.ttest_ind(left, right, equal_var=False).confidence_interval(CONFIDENCE)
    return Difference(mean, (float(found.low), float(found.high)), paired=False)


def lower_is_better(metric: str) -> bool:
    """Whether a metric, by its name, is better when it is lower."""
    return not _LOWER_IS_BETTER.isdisjoint(metric.rpartition("/")[2].split("_"))


def regressions(groups: Sequence[Group], baseline: Group) -> list[str]:
    """Lists the evaluation metrics that are worse than those of a baseline, by more than noise.

    Args:
        groups: groups to check.
        baseline: group to compare with.

    Returns:
        A line per group and metric.
    """
    lines = []
    for group in groups:
        for metric in evaluation_metrics([group, baseline]):
            found = difference(group, baseline, metric)
            if found is None or found.is_noise is not False:
                continue
            if (found.mean > 0) == lower_is_better(metric):
                lines.append(f"{group.name}: {metric} is worse by {abs(found.mean):.4g}")
    return lines


def evaluation_metrics(groups: Sequence[Group]) -> list[str]:
    """Names of the metrics of evaluators, as zeroshot/NAME/top1, in order of first appearance."""
    runs = (run for group in groups for run in group.runs)
    return [name for name in metric_names(runs) if "/" in name]
