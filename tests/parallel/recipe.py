"""Recipe of the tiny CLIP, for runs of several processes."""

import signal

from ml_collections import ConfigDict

from tests.helpers import tiny_clip

# What happens to a run, by the argument of the recipe.
ACCIDENTS = {
    "kill_all": {"step": 6, "signal": int(signal.SIGKILL)},
    "kill": {"step": 6, "signal": int(signal.SIGKILL), "process": 1},
    # Before the first step, which is not step 1 in a run that is resumed.
    "stop": {"step": 0, "signal": int(signal.SIGTERM), "process": 0, "to_parent": True},
}


def get_config(arg: str = "") -> ConfigDict:
    """`helpers.tiny_clip` with a checkpoint every four steps.

    Args:
        arg: key of `ACCIDENTS`, or "".
    """
    config = tiny_clip()
    config.checkpoint_percent, config.checkpoint_steps = 0.0, 4
    if arg:
        config.hooks.accident = {"name": "tests.training.components:SendSignal", **ACCIDENTS[arg]}
    return config
