"""Curricula: stages of a run with cheaper images or tokens (Li et al. 2023, CLIPA; OpenVision).

    config.stages.small = {"until_percent": 90.0, "model": {"image": {"image_size": 84}}}

The last part of the run has the config itself. State, schedule and order of the data know nothing
of stages, so that a run may stop and continue anywhere.
"""

import dataclasses
from typing import TYPE_CHECKING

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from vit_jax.data.crops import FIELDS as CROPS
from vit_jax.data.crops import CropsConfig
from vit_jax.errors import UserError, unknown
from vit_jax.models.sizes import Size
from vit_jax.training.variants import KEYS, changed_config, derive

if TYPE_CHECKING:
    from vit_jax.experiment import Experiment

UNTIL = "until_percent"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        name: name in `config.stages`; empty for the last one.
        end: steps of the run that are done when it ends.
        experiment: model, data and step of this part.
    """

    name: str
    end: int
    experiment: "Experiment"

    @property
    def size(self) -> Size:
        """Height and width of its images, px."""
        return self.experiment.inputs.size


def make_stages(experiment: "Experiment") -> list[Stage]:
    """Builds the stages of a run, the whole run if it has no others.

    Args:
        experiment: experiment of the config, which is the last stage.

    Raises:
        UserError: a wrong key, a stage that has no step, or other parameters than those of the run.
    """
    stages: list[Stage] = []
    total = experiment.durations.total
    for name in _in_order(experiment.config):
        end = round(_until(experiment.config, name) / 100 * total)
        if end <= (stages[-1].end if stages else 0):
            raise UserError(f"config.stages.{name} has no step: the run has {total} steps")
        config = stage_config(experiment.config, name)
        staged = derive(experiment, config, f"stages.{name}")
        _leave_out_crops(staged)
        _check(staged, f"config.stages.{name}")
        stages.append(Stage(name, end, staged))
    return [*stages, Stage("", total, experiment)]


def stage_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config of a stage.

    Args:
        config: config of the run.
        name: key of `config.stages`.

    Raises:
        UserError: an unknown stage or key, or one that may not change within a run.
    """
    if name not in config.stages:
        raise unknown(name, config.stages, "stage")
    changes = flatten_dict(config.stages[name].to_dict(), sep=".")
    changes.pop(UNTIL, None)
    keys = (*KEYS, "draw", "token_budget")
    return changed_config(config, changes, f"config.stages.{name}", keys, {"stages": {}})


def _leave_out_crops(staged: "Experiment") -> None:
    """Resets the keys of crops, which are those of other stages, where this one reads none."""
    if not {*CROPS} & {*staged.objective.fields}:
        staged.config.data.crops = ConfigDict(dataclasses.asdict(CropsConfig()))


def _check(staged: "Experiment", path: str) -> None:
    """Finds the mistakes of a stage before the run starts."""
    if "anchor" in staged.objective.reads_state and staged.abstract_state.anchor is None:
        raise UserError(
            f"{path} has a Gram teacher, which the state of the run does not keep: set "
            "config.objective.gram_weight for the end of the run as well"
        )
    _ = staged.loader


def _in_order(config: ConfigDict) -> list[str]:
    """Names of the stages by the time at which they end."""
    return sorted(config.stages, key=lambda name: _until(config, name))


def _until(config: ConfigDict, name: str) -> float:
    block = config.stages[name]
    until = block.get(UNTIL) if isinstance(block, ConfigDict) else None
    if not isinstance(until, int | float) or not 0 < until < 100:
        raise UserError(
            f"config.stages.{name}: expected a block with {UNTIL}, a number between 0 and 100, and "
            f"changed keys; found {block!r:.80}"
        )
    return float(until)
