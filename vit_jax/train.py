"""Trains a model.

    python -m vit_jax.train --config configs/X.py --workdir DIR [--config.key=value]

The same command continues an interrupted run from its newest checkpoint. Exit codes: 0 done, 2 an
error whose message says how to fix it, 75 interrupted with the state saved.
"""

from absl import flags

from vit_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics, config.", required=True
)


def main() -> None:
    """Trains and prints the metrics of the last evaluation."""
    # JAX is imported after the flags are checked: a mistyped flag is answered at once.
    from vit_jax.experiment import train
    from vit_jax.parallel import processes

    config = cli.load_config(str(_CONFIG.value))
    processes.start()
    cli.print_metrics(train(config, str(_WORKDIR.value)))


if __name__ == "__main__":
    cli.run(main)
