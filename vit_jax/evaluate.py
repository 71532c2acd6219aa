"""Evaluates a run: python -m vit_jax.evaluate --workdir DIR

    --json                             one JSON object instead of a table
    --step N                           an older checkpoint instead of the newest
    --images DIR [--names FILE]        zero-shot accuracy on pictures of your own: one sub-folder a
                                       class, or a names file with lines `file.png<TAB>label`
    --image FILE --labels "a cat,a dog"  probabilities of your labels for one picture

Nothing is trained. The evaluators are those of the run's config; their figures equal the ones that
training wrote at that step.
"""

import json

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; by default the newest.", lower_bound=0)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of pictures to classify.")
_NAMES = flags.DEFINE_string("names", None, "Names file of a flat --images folder.")
_IMAGE = flags.DEFINE_string("image", None, "One picture to classify.")
_LABELS = flags.DEFINE_string("labels", None, "Labels for --image, separated by commas.")


def main() -> None:
    """Evaluates what the flags ask for and prints it."""
    labels = _check_flags()
    from vit_jax.training.restore import restore

    run = restore(_WORKDIR.value, step=_STEP.value)
    if _IMAGE.value:
        figures = run.classify(_IMAGE.value, labels)
    elif _IMAGES.value:
        block = {
            "data": f"folder:{_IMAGES.value}",
            "names_file": _NAMES.value,
            "templates": run.config.data.templates,
        }
        figures = run.evaluate({"zeroshot": {"images": block}})
    else:
        figures = run.evaluate(run.config.evals.to_dict())
    if _JSON.value:
        print(json.dumps(figures))
    else:
        cli.print_figures(figures)


def _check_flags() -> list[str]:
    """Refuses flags that do not go together; returns the labels."""
    if _IMAGE.value and _IMAGES.value:
        raise UserError("--image takes one picture, --images a folder: give one of the two")
    if _NAMES.value and not _IMAGES.value:
        raise UserError("--names goes with --images")
    if bool(_IMAGE.value) != (_LABELS.value is not None):
        raise UserError('--image and --labels go together, as --image cat.png --labels "cat,dog"')
    labels = [label.strip() for label in (_LABELS.value or "").split(",") if label.strip()]
    if _IMAGE.value and not labels:
        raise UserError('--labels is empty: expected labels separated by commas, as "cat,dog"')
    if len(set(labels)) < len(labels):
        raise UserError(f"--labels has a label twice: {_LABELS.value}")
    return labels


if __name__ == "__main__":
    cli.run(main)
