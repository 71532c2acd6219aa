"""Variants of a recipe, read and checked."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax import workdir as workdir_lib
from vit_jax.errors import UserError
from vit_jax.experiment import build
from vit_jax.paths import as_path
from vit_jax.recipes import apply_override, load_recipe, recipe_module

FINISHED, STARTED, NEW = "finished", "started", "not started"

_NAME = re.compile(r"[\w.,=+-]+")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of a recipe.

    Attributes:
        name: name, also that of its folder.
        recipe: value of `--config`.
        overrides: changes of config keys, as "optim.lr=0.003".
        config: the config with these changes.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...]
    config: ConfigDict

    @functools.cached_property
    def resolved_config(self) -> ConfigDict:
        """The config with every key of its components, as a run saves it.

        Raises:
            UserError: a wrong key or value.
        """
        return build(self.config, data=False).resolved_config

    def state(self, workdir: str) -> str:
        """FINISHED, STARTED or NEW.

        Args:
            workdir: folder of the sweep.

        Raises:
            UserError: the variant is finished with another config.
        """
        folder = as_path(workdir) / self.name
        if not workdir_lib.is_complete(folder):
            return STARTED if (folder / workdir_lib.CONFIG_FILE).exists() else NEW
        changed = workdir_lib.changes(folder, self.resolved_config)
        relevant = {k: c for k, c in changed.items() if not k.startswith(workdir_lib.FREE_KEYS)}
        if relevant:
            raise workdir_lib.refuse(folder, relevant, "it is finished")
        return FINISHED

    def train_arguments(self, workdir: str) -> list[str]:
        """Arguments of `vit_jax.train`.

        Args:
            workdir: folder of the sweep.
        """
        folder = f"{workdir.rstrip('/')}/{self.name}"
        changes = [f"--config.{override}" for override in self.overrides]
        return ["--config", self.recipe, "--workdir", folder, *changes]


def load_variants(recipe: str, overrides: Sequence[str] = ()) -> list[Variant]:
    """Reads the variants of a recipe, and checks the config of each.

    Args:
        recipe: value of `--config`, see `recipes.load_recipe`.
        overrides: changes for all variants, as "total_steps=100".

    Raises:
        UserError: no `get_sweep` in the recipe, a name that is no folder name, a key that a variant
            and `overrides` change, or a wrong key or value.
    """
    module = recipe_module(recipe)
    if not hasattr(module, "get_sweep"):
        raise UserError(
            f"{recipe} has no function get_sweep(): expected one that returns the changes of each "
            "variant by its name, see vit_jax.sweeping"
        )
    found = module.get_sweep()
    if not (isinstance(found, dict) and found and all(isinstance(x, dict) for x in found.values())):
        raise UserError(
            f"{recipe}: get_sweep returned {found!r:.80}, expected a dict of variants by name, "
            "each a dict of config keys and values"
        )
    return [make_variant(name, changes, recipe, overrides) for name, changes in found.items()]


def make_variant(
    name: str, changes: dict[str, Any], recipe: str, overrides: Sequence[str] = ()
) -> Variant:
    """Builds a variant and checks its config.

    Args:
        name: name of its folder.
        changes: value of each config key that it changes.
        recipe: value of `--config`.
        overrides: changes for all variants.

    Raises:
        UserError: see `load_variants`.
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise UserError(
            f"{recipe}: the variant {name!r} is no folder name: expected letters, digits and "
            "_.,=+- ; name the variants by a dict"
        )
    if twice := {override.partition("=")[0] for override in overrides} & changes.keys():
        raise UserError(f"--config.{min(twice)}: the variant {name!r} of {recipe} changes this key")
    own = tuple(f"{key}={value!r}" for key, value in changes.items())
    config = load_recipe(recipe)
    try:
        for override in (*overrides, *own):
            apply_override(config, override)
        variant = Variant(name, recipe, (*overrides, *own), config)
        _ = variant.resolved_config
    except UserError as error:
        raise UserError(f"variant {name!r}: {error}") from None
    return variant
