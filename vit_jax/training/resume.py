"""Whether the state in a workdir fits a config that has changed since."""

import logging
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from vit_jax import workdir as workdir_lib
from vit_jax.paths import StrPath

if TYPE_CHECKING:
    from vit_jax.experiment import Experiment

logger = logging.getLogger(__name__)


def check_resumable(workdir: StrPath, experiment: "Experiment") -> None:
    """Logs which keys have changed since the last start of a run.

    Args:
        workdir: folder of the run, which need not exist yet.
        experiment: experiment of this start.

    Raises:
        UserError: the saved state has other shapes, or its position in the data another meaning.
    """
    changed = workdir_lib.changes(workdir, experiment.resolved_config)
    fixed = {k: change for k, change in changed.items() if k in workdir_lib.FIXED_KEYS}
    if fixed:
        raise workdir_lib.refuse(workdir, fixed, "its data position or its tokens mean other ones")
    relevant = {k: c for k, c in changed.items() if not k.startswith(workdir_lib.FREE_KEYS)}
    if relevant and (difference := _difference(_previous_config(workdir, experiment), experiment)):
        raise workdir_lib.refuse(workdir, relevant, f"its saved state differs ({difference})")
    for key, change in changed.items():
        logger.warning("Changed since the last start: %s: %s.", key, change)


def _previous_config(workdir: StrPath, experiment: "Experiment") -> ConfigDict:
    """The saved config on the devices of this start.

    Keys that its version lacked have the values of this start.
    """
    now, merged = experiment.config, ConfigDict(experiment.config.to_dict())
    for key, value in workdir_lib.load_config(workdir).items():
        merged[key] = value
    # The devices of the last start may be gone, and the shapes of the state do not depend on them.
    merged.mesh, merged.grad_accum_steps = now.mesh, now.grad_accum_steps
    return merged


def _difference(previous: ConfigDict, experiment: "Experiment") -> str | None:
    """The first array in which the state of a config differs from the experiment's, or None."""
    before = experiment.with_config(previous).abstract_state
    if found := first_difference(before, experiment.abstract_state):
        path, old, new = found
        return f"{path}: {old} -> {new}"
    return None


def first_difference(old: Any, new: Any) -> tuple[str, str, str] | None:
    """Compares the arrays of two trees.

    Returns:
        Path of the first one that differs, its type and shape in both; None if they are equal.
    """
    shapes = _shapes(old), _shapes(new)
    for path in sorted(shapes[0].keys() | shapes[1].keys()):
        before, now = (own.get(path, "absent") for own in shapes)
        if before != now:
            return path, before, now
    return None


def _shapes(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
