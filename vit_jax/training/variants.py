"""Variants of the training step: each batch draws one, as its size of patches or its length.

    config.draw.model = {"patch_size": (8, 10, 12, 15, 16, 20, 24, 30, 40, 48)}

Every step draws one of the values of a key (FlexiViT, Beyer et al. 2023; NaFlex, Tschannen et al.
2025, SigLIP 2, section 2.4.2). A value that is listed twice is drawn twice as often. With several
keys, each is drawn by itself. Each combination of values is a variant: one model, one preprocessing
and one compiled step. State, schedule and order of the data are those of the run.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.data.draw import Draw
from vit_jax.errors import UserError, unknown
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.recipes import OPEN_BLOCKS, apply_override
from vit_jax.training.resume import first_difference

if TYPE_CHECKING:
    from vit_jax.experiment import Experiment

T = TypeVar("T")

# Keys that may change within a run; the others belong to the state or to the order of the data.
KEYS = ("model", "compute", "objective", "grad_accum_steps", "data.augment", "data.templates")


def shared(build: "Callable[[Experiment], T]") -> functools.cached_property[T]:
    """Decorates a part that the stages and variants of a run take from the run."""

    @functools.wraps(build)
    def part(self: "Experiment") -> T:
        return build(self) if self.base is None else getattr(self.base, build.__name__)

    return functools.cached_property(part)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of the step.

    Attributes:
        name: values of the keys that are drawn, as "patch_size_16"; empty where nothing is drawn.
        experiment: model, preprocessing and step.
    """

    name: str
    experiment: "Experiment"


class Variants:
    """The variants of a run or stage."""

    def __init__(self, variants: Mapping[str, "Experiment"], draw: Draw):
        """Stores the arguments.

        Args:
            variants: experiments by name.
            draw: draws the index of a variant.
        """
        self._variants = [Variant(*each) for each in variants.items()]
        self.draw = draw

    def __len__(self) -> int:
        """Number of variants."""
        return len(self._variants)

    def __iter__(self) -> Iterator[Variant]:
        """The variants, in the order in which their values are listed."""
        return iter(self._variants)

    def at(self, number: int) -> Variant:
        """The variant of a batch.

        Args:
            number: number of the batch; the first one of a run is 1.
        """
        return self._variants[self.draw(number)]

    def named(self, name: str) -> Variant:
        """The variant of a name.

        Raises:
            UserError: no such variant.
        """
        found = {each.name: each for each in self}
        if name not in found:
            raise unknown(name, found, "variant")
        return found[name]

    def frequency(self, variant: Variant) -> float:
        """Fraction of the batches that draw a variant."""
        outcomes = self.draw.outcomes
        return outcomes.count(self._variants.index(variant)) / len(outcomes)


def make_variants(experiment: "Experiment") -> Variants:
    """Builds the variants of a run or stage; the run itself if nothing is drawn.

    Args:
        experiment: experiment with `config.draw`.

    Raises:
        UserError: a wrong key or value, or other parameters than those of the run.
    """
    config = experiment.config
    keys = {k: _values(k, v) for k, v in flatten_dict(config.draw.to_dict(), sep=".").items()}
    if not keys:
        return Variants({"": experiment}, Draw(config.seed))
    rows = [dict(zip(keys, row, strict=True)) for row in itertools.product(*keys.values())]
    changes = {_name(row): row for row in rows}
    blank: dict[str, Any] = {"stages": {}, "draw": {}}
    variants = {
        name: derive(experiment, changed_config(config, row, "config.draw", KEYS, blank), "draw")
        for name, row in changes.items()
    }
    outcomes = tuple(list(changes).index(_name(row)) for row in rows)
    return Variants(variants, Draw(config.seed, outcomes))


def derive(experiment: "Experiment", config: ConfigDict, path: str) -> "Experiment":
    """Builds the experiment of a stage or variant, which shares state and data with its run.

    Args:
        experiment: experiment of the run.
        config: config of the stage or variant.
        path: block of the config that makes the difference, for messages.

    Raises:
        UserError: other parameters than those of the run.
    """
    derived = experiment.derived(config)
    if found := first_difference(experiment.model.shapes(), derived.model.shapes()):
        name, expected, other = found
        raise UserError(
            f"config.{path} has other parameters than the run: {name} is {other}, expected "
            f"{expected}"
        )
    return derived


def changed_config(
    config: ConfigDict,
    changes: Mapping[str, Any],
    path: str,
    keys: tuple[str, ...],
    blank: Mapping[str, Any],
) -> ConfigDict:
    """A config with other values of some keys, whose parameters keep their shapes.

    Args:
        config: config of the run.
        changes: key -> value.
        path: block that the changes come from, for messages.
        keys: keys that may change, blocks included.
        blank: top-level keys that get other values.

    Raises:
        UserError: an unknown key, or one that may not change.
    """
    changed = ConfigDict({**config.to_dict(), **blank}).lock()
    for block in OPEN_BLOCKS:
        changed[block].unlock()
    for key, value in changes.items():
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in keys):
            raise UserError(
                f"{path}.{key} cannot change within a run; expected one of {', '.join(keys)}"
            )
        try:
            apply_override(changed, f"{key}={value!r}")
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    _keep_parameters(config, changed)
    return changed


def _keep_parameters(config: ConfigDict, changed: ConfigDict) -> None:
    """Keeps the positions and the kernel of the patches, which a tower resizes to its images."""
    tower, block = config_lib.model_spec(config).architecture, changed.model
    if hasattr(tower, "image"):
        if "image" not in block:
            block.image = ConfigDict()
        tower, block = tower.image, block.image
    if isinstance(tower, ViTConfig):
        block.position_grid, block.kernel_size = tower.table_grid, tower.kernel_side
    if isinstance(tower, CLIPResNetConfig):
        block.pool_size = tower.pool_size or tower.image_size


def _values(key: str, values: Any) -> list[Any]:
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"config.draw.{key}={values!r}: expected a list of values to draw from")
    return list(values)


def _name(row: Mapping[str, Any]) -> str:
    """Name of a variant, of letters that every tracker takes in the name of a metric."""
    values = {key: re.sub(r"[^\w.]+", "x", str(value)).strip("x") for key, value in row.items()}
    return "-".join(f"{key.rpartition('.')[2]}_{value}" for key, value in values.items())
