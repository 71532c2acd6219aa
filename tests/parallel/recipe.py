"""Recipe of the tiny CLIP, for runs of several processes."""

import signal

from ml_collections import ConfigDict

from tests.helpers import tiny_clip


def get_config(arg: str = "") -> ConfigDict:
    """`helpers.tiny_clip` with a checkpoint every four steps.

    Args:
        arg: "kill" to kill process 1 after step 6.
    """
    config = tiny_clip()
    config.checkpoint_percent, config.checkpoint_steps = 0.0, 4
    if arg == "kill":
        config.hooks.kill = {
            "name": "tests.training.components:SendSignal",
            "step": 6,
            "signal": int(signal.SIGKILL),
            "process": 1,
        }
    return config
