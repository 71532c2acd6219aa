"""Work between the steps of a run: progress, metrics, evaluation, checkpoints, failures."""

from collections.abc import Mapping
from typing import Any

from vit_jax.components import Registry
from vit_jax.training.hooks.base import Hook

# Hooks that a config adds; those of every run have keys of their own in
# the config, as `checkpoint_steps`, and are put in order in `training.loop`.
HOOKS = Registry("hook", {"samples": "vit_jax.training.hooks.samples:Samples"})


def build_hooks(blocks: Mapping[str, Mapping[str, Any]]) -> list[Hook]:
    """The hooks of `config.hooks`.

    Args:
        blocks: label -> `name`, of the registry or as package.module:Hook, and keys.

    Raises:
        UserError: a name that cannot be imported, or an unknown key.
    """
    hooks = []
    for label, block in blocks.items():
        component, config = HOOKS.select(block, f"config.hooks.{label}")
        hooks.append(component(config))
    return hooks
