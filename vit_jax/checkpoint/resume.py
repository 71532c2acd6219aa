"""Whether a workdir's state goes with a config that has changed since."""

import logging
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax import workdir as workdir_lib
from vit_jax.training import assembly
from vit_jax.training.assembly import Program

logger = logging.getLogger(__name__)


def check_resumable(workdir: pathlib.Path, config: ConfigDict, program: Program) -> None:
    """Tells what has changed since the run's last start.

    Args:
        workdir: of the run, or of none yet.
        config: of this start.
        program: of this start.

    Raises:
        UserError: the saved state has another shape, or its position another meaning.
    """
    changed = workdir_lib.changes(workdir, config)
    fixed = {k: change for k, change in changed.items() if k in workdir_lib.FIXED_KEYS}
    if fixed:
        raise workdir_lib.refuse(workdir, fixed, "its position in the data or its tokens are other")
    computing = {k: c for k, c in changed.items() if not k.startswith(workdir_lib.FREE_KEYS)}
    if computing and (place := _other_shape(_before(workdir, config), program)):
        raise workdir_lib.refuse(workdir, computing, f"its saved state is another ({place})")
    for key, change in changed.items():
        logger.warning("Changed since the last start: %s: %s.", key, change)


def _before(workdir: pathlib.Path, config: ConfigDict) -> ConfigDict:
    """The run's config so far; keys that its version did not know have today's values."""
    saved = workdir_lib.load_config(workdir)
    merged = ConfigDict(config.to_dict())
    merged.update(saved.to_dict())
    # Another family of models has other keys.
    merged.model = saved.model
    return merged


def _other_shape(config: ConfigDict, program: Program) -> str | None:
    """Where the state of a config differs from a program's; None where it does not."""
    before = assembly.build_program(
        config, program.mesh, warmup_steps=0, total_steps=1, resumed=True
    )
    old, new = _shapes(before.abstract), _shapes(program.abstract)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            return f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
    return None


def _shapes(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
