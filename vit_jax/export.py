"""Exports a model for inference without this package, as StableHLO with a model card.

    python -m vit_jax.export --workdir RUN --output DIR [--labels "a cat,a dog"]
    python -m vit_jax.export --weights FILE [--model NAME] --output DIR

    --tokenizer SPEC           tokenizer of a dual encoder whose own one needs a file, as gemma:FILE
    --platforms cpu,cuda,tpu   platforms that the programs run on
    --dtype bfloat16           compute type; weights stay float32
    --license ID               SPDX identifier for the model card, as apache-2.0
    --overwrite                replace an existing output

DIR holds a program per function (`encode_image.stablehlo`, ...), whose batch size is free,
`weights.npz`, `export.json` with preprocessing, shapes and labels, the tokenizer, and README.md,
the model card with a snippet that runs. JAX, NumPy and flatbuffers are enough to use them. Each
program is reloaded and compared with the model.
"""

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.exporting import DESCRIPTION
from vit_jax.paths import as_path

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Weight file.")
_MODEL = flags.DEFINE_string("model", None, "Registered model of --weights.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokenizer, if that of the model needs a file.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_LABELS = flags.DEFINE_list("labels", None, "Labels by which a dual encoder classifies images.")
_PLATFORMS = flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], "Platforms of the programs.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Compute type.")
_LICENSE = flags.DEFINE_string("license", "", "SPDX identifier of the weights' licence.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output.")


def main() -> None:
    """Loads the model, exports it and prints how far the reloaded programs differ."""
    if bool(_WORKDIR.value) == bool(_WEIGHTS.value):
        raise UserError("expected --workdir for a run, or --weights for a weight file")
    if _WORKDIR.value and _MODEL.value:
        raise UserError("--model goes with --weights; a run has its own config")
    output = as_path(_OUTPUT.value)
    if (output / DESCRIPTION).exists() and not _OVERWRITE.value:
        raise UserError(f"{output} holds an export; --overwrite replaces it")
    # JAX is imported after the flags are checked: a mistyped flag is answered at once.
    from vit_jax.exporting import folder
    from vit_jax.exporting.programs import check_platforms
    from vit_jax.pretrained.model import create_model

    check_platforms(_PLATFORMS.value)
    source = str(_WORKDIR.value or _WEIGHTS.value)
    model = create_model(
        _MODEL.value, weights=source, dtype=_DTYPE.value, tokenizer=_TOKENIZER.value
    )
    differences = folder.export_model(
        model,
        output,
        name=_MODEL.value or as_path(source).stem,
        platforms=_PLATFORMS.value,
        labels=_LABELS.value or (),
        licence=_LICENSE.value,
        workdir=_WORKDIR.value,
    )
    for name, difference in differences.items():
        print(f"{output / name}{folder.SUFFIX}: differs from the model by {difference:.1e}")


if __name__ == "__main__":
    cli.run(main)
