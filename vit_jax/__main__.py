"""Commands of vit_jax under one name: `vit-jax train --config clip_emoji --workdir runs/emoji`.

`vit-jax COMMAND` is `python -m vit_jax.COMMAND` without the path of the module.
"""

import runpy
import sys

from vit_jax import cli, interruption
from vit_jax.errors import unknown

# Command -> its module and a summary.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("vit_jax.train", "Train a model with a recipe."),
    "sweep": ("vit_jax.sweep", "Train the variants of a recipe, here or on a cluster."),
    "evaluate": ("vit_jax.evaluate", "Evaluate a run, weights or a registered model."),
    "plan": ("vit_jax.plan", "Estimate memory and time of a training step on a TPU slice."),
    "convert": ("vit_jax.convert", "Convert weights between formats."),
    "soup": ("vit_jax.soup", "Average the weights of models: WiSE-FT and model soups."),
    "export": ("vit_jax.export", "Export a model for inference, as StableHLO with a model card."),
    "report": ("vit_jax.report", "Compare the configs and metrics of runs."),
    "demo": ("vit_jax.demo", "Show a model in the browser."),
    "prepare": ("vit_jax.data.prepare", "Write a data source as shards."),
    "inspect": ("vit_jax.data.inspect", "Check the images and captions of a data source."),
    "train-tokenizer": ("vit_jax.data.train_tokenizer", "Train a tokenizer on captions."),
}


def main() -> None:
    """Runs the command that the first argument names; lists the commands where there is none."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
        return
    if name not in COMMANDS:
        print(f"error: {unknown(name, COMMANDS, 'command')}", file=sys.stderr)
        sys.exit(cli.EXIT_USER_ERROR)
    interruption.block()  # until the command watches for signals
    del sys.argv[1]
    # As the main module: absl lists its flags for --help, and spawned readers import it again.
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


def usage() -> str:
    """The commands with their summaries."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vit-jax COMMAND [flags]",
            "",
            *lines,
            "",
            "`vit-jax COMMAND --help` lists the flags of a command.",
        ]
    )


if __name__ == "__main__":
    main()
