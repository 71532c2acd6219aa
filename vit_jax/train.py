"""Trains a model.

    python -m vit_jax.train --config configs/X.py --workdir DIR [--config.key=value]

The same command continues an interrupted run from its newest checkpoint. Exit codes: 0 done, 2 an
error whose message says how to fix it, 75 interrupted with the state saved.
"""

import shlex
from typing import TYPE_CHECKING

from absl import flags

from vit_jax import cli, interruption, launchers

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, local or gs://.",
    required=True,
)


def main() -> None:
    """Trains and prints the metrics of the last evaluation."""
    # JAX is imported after the flags are checked: a mistyped flag is answered at once.
    from vit_jax.workdir import workdir_path

    workdir = str(workdir_path(str(_WORKDIR.value)))
    config = cli.load_config(str(_CONFIG.value))

    from vit_jax import compilation_cache
    from vit_jax.experiment import train
    from vit_jax.parallel import processes

    processes.start()
    compilation_cache.use_default()
    cli.print_metrics(train(config, workdir))
    cli.suggest(*_next_steps(shlex.quote(workdir), config))


def _next_steps(workdir: str, config: "ConfigDict") -> list[str]:
    """Command lines for a complete run."""
    from vit_jax.config import model_spec

    steps = []
    if config.evals:
        steps.append(f"vit-jax evaluate --workdir {workdir}")
    architecture = model_spec(config).architecture
    if hasattr(architecture, "text") and not hasattr(architecture, "decoder"):
        steps.append(f'vit-jax evaluate --workdir {workdir} --image FILE --labels "a cat,a dog"')
    report = f"vit-jax report {workdir}"
    return [*steps, report, f"vit-jax convert --workdir {workdir} --output DIR --to vit_jax"]


if __name__ == "__main__":
    cli.run(
        main,
        stopped="stopped before the first step; the same command starts again",
        code=interruption.RESUMABLE,
        hold=launchers.starts_several(),
    )
