"""Learns a tokenizer from captions.

    python -m vit_jax.data.train_tokenizer --captions FILE --output DIR [--vocab_size N]

Both are local or in a bucket, gs:// or s3://. The file has one caption per line, UTF-8. The result
is `DIR/tokenizer.json`; a run reads it with --config.model.tokenizer=saved:DIR and
--config.model.text.vocab_size=N. A run that learns from its own captions needs no command: its
tokenizer is `trained`.
"""

import shlex
import statistics

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.paths import as_path

_CAPTIONS = flags.DEFINE_string("captions", None, "Text file, one caption per line.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for tokenizer.json.", required=True)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 16_384, "Rows of the embedding table.")


def main() -> None:
    """Learns and saves the tokenizer, and prints the lengths of captions."""
    from vit_jax.data.tokenizers import FILE_NAME, Tokenizer
    from vit_jax.data.tokenizers.trained import TrainedEncoder

    captions = _captions(_CAPTIONS.value)
    encoder = TrainedEncoder.train(captions, _VOCAB_SIZE.value)
    lengths = sorted(len(tokens) + 1 for tokens in encoder.encode(captions))
    # The length of a row is not saved, because it belongs to the text tower.
    tokenizer = Tokenizer(encoder, vocab_size=_VOCAB_SIZE.value, context_length=lengths[-1])
    output = as_path(_OUTPUT.value)
    tokenizer.save(output)
    print(f"{output / FILE_NAME}: {encoder.size()} ids, learned from {len(captions)} captions")
    print(
        f"ids per caption, with the end: median {statistics.median(lengths):g}, "
        f"maximum {lengths[-1]}"
    )
    cli.suggest(
        "vit-jax train --config RECIPE --workdir DIR "
        f"--config.model.tokenizer={shlex.quote(f'saved:{output}')} "
        f"--config.model.text.vocab_size={_VOCAB_SIZE.value}"
    )


def _captions(path: str) -> list[str]:
    file = as_path(path)
    if not file.is_file():
        raise UserError(f"no captions at {path}: expected a text file with one caption per line")
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.start} is {error.reason}") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise UserError(f"{path} has no captions: expected one per line")
    return captions


if __name__ == "__main__":
    cli.run(main)
