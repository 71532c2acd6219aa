"""Trains a model: python -m vit_jax.train --config configs/X.py --workdir DIR [--config.key=value]

The same command continues an interrupted run from its newest checkpoint. Exit codes: 0 done, 2 an
error that the message says how to mend, 75 interrupted with the state saved.
"""

from absl import flags
from ml_collections import config_flags

from vit_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as configs/clip_emoji.py.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics, config.", required=True
)
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains and prints the last metrics."""
    # JAX is imported once the flags are known to be right: a typo is answered at once.
    from vit_jax.parallel import processes
    from vit_jax.training.loop import train

    processes.start()
    figures = train(_CONFIG.value, _WORKDIR.value)
    cli.print_metrics(figures)


if __name__ == "__main__":
    cli.run(main)
