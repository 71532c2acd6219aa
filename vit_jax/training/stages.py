"""Curricula: stages of a run with cheaper images or tokens (Li et al. 2023, CLIPA; OpenVision).

    config.stages.small = {"until_percent": 90.0, "model": {"image": {"image_size": 84}}}

The last part of the run has the config itself. State, schedule and order of the data know nothing
of stages, so that a run may stop and continue anywhere.
"""

import dataclasses
from typing import TYPE_CHECKING

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.errors import UserError, unknown
from vit_jax.models.sizes import Size
from vit_jax.models.vit.model import ViTConfig
from vit_jax.recipes import OPEN_BLOCKS, apply_override
from vit_jax.training.resume import first_difference

if TYPE_CHECKING:
    from vit_jax.experiment import Experiment

UNTIL = "until_percent"
# Keys that may change within a run; the others belong to the state or to the order of the data.
KEYS = ("model", "compute", "objective", "grad_accum_steps", "data.augment", "data.templates")


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
        stages.append(Stage(name, end, _staged(experiment, name)))
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
    changed = ConfigDict({**config.to_dict(), "stages": {}}).lock()
    for block in OPEN_BLOCKS:
        changed[block].unlock()
    changes = flatten_dict(config.stages[name].to_dict(), sep=".")
    changes.pop(UNTIL, None)
    for key, value in changes.items():
        path = f"config.stages.{name}.{key}"
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in KEYS):
            raise UserError(
                f"{path} cannot change within a run; a stage may change {', '.join(KEYS)}"
            )
        try:
            apply_override(changed, f"{key}={value!r}")
        except UserError as error:
            raise UserError(f"config.stages.{name}: {error}") from None
    _keep_positions(config, changed)
    return changed


def _keep_positions(config: ConfigDict, changed: ConfigDict) -> None:
    """Keeps the table of positions, which the model resizes to the images of the stage."""
    tower, block = config_lib.model_spec(config).architecture, changed.model
    if hasattr(tower, "image"):
        tower, block = tower.image, block.image
    if isinstance(tower, ViTConfig):
        block.position_grid = tower.table_grid


def _staged(experiment: "Experiment", name: str) -> "Experiment":
    """The experiment of a stage, which shares state and data with that of the run."""
    staged = experiment.with_config(stage_config(experiment.config, name), data=True)
    if found := first_difference(experiment.model.shapes(), staged.model.shapes()):
        path, expected, other = found
        raise UserError(
            f"config.stages.{name} has other parameters than the run: {path} is {other}, expected "
            f"{expected}"
        )
    shared = ("source", "tokenizer", "durations", "optim", "schedule", "frozen", "optimizer")
    for part in (*shared, "abstract_state"):
        setattr(staged, part, getattr(experiment, part))
    _ = staged.objective, staged.loader  # mistakes are found before the run starts
    return staged


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
