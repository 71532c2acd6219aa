"""Configs and metrics of runs, read from their folders."""

import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flax import traverse_util

from vit_jax import provenance
from vit_jax.errors import UserError
from vit_jax.paths import StrPath, as_path
from vit_jax.workdir import saved_config

if TYPE_CHECKING:
    from etils import epath

METRICS_FILE = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values of a metric.

    Attributes:
        steps: training steps in ascending order.
        values: value at each step.
    """

    steps: list[int]
    values: list[float]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Config and metrics of a run.

    Attributes:
        name: name of the folder.
        config: value of each config key; nested keys are joined by ".".
        curves: values of each metric.
        starts: what each start of the run recorded, see `provenance`.
        workdir: folder of the run.
    """

    name: str
    config: dict[str, Any]
    curves: dict[str, Curve]
    starts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    workdir: "epath.Path | None" = None

    @property
    def last_values(self) -> dict[str, float]:
        """Last value of each metric."""
        return {name: curve.values[-1] for name, curve in self.curves.items()}


def metric_names(runs: Iterable[RunRecord]) -> list[str]:
    """Names of the metrics that some run has, in order of first appearance."""
    return list(dict.fromkeys(name for run in runs for name in run.curves))


def read_run(workdir: StrPath) -> RunRecord:
    """Reads config and metrics of a run.

    Args:
        workdir: folder of the run, local or in a bucket.

    Raises:
        UserError: not the folder of a run, no metrics yet, or a line that is not valid.
    """
    path = as_path(workdir)
    config = traverse_util.flatten_dict(saved_config(path), sep=".")
    curves = _read_curves(path / METRICS_FILE)
    return RunRecord(path.resolve().name, config, curves, _read_starts(path), path)


def _read_starts(workdir: "epath.Path") -> list[dict[str, Any]]:
    """Recorded starts; none for runs of earlier versions."""
    path = workdir / provenance.FOLDER / provenance.FILE_NAME
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _read_curves(path: "epath.Path") -> dict[str, Curve]:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {METRICS_FILE}: the run has not written metrics yet")
    by_step: dict[str, dict[int, float]] = {}
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):  # still being written, or cut off by a kill
            continue
        try:
            row = json.loads(line)
            step = row.pop("step")
        except (json.JSONDecodeError, KeyError):
            raise UserError(f"{path}, line {number}: expected an object with a step") from None
        for name, value in row.items():
            # A resumed run may repeat a step: the last line counts.
            by_step.setdefault(name, {})[step] = value
    return {
        name: Curve(steps := sorted(values), [values[step] for step in steps])
        for name, values in by_step.items()
    }
