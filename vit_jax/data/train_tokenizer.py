"""Learns a tokenizer from captions.

    python -m vit_jax.data.train_tokenizer --captions FILE --output DIR [--vocab_size N]

The file holds one caption a line, UTF-8. The result is `DIR/tokenizer.json`; a run reads it with
--config.tokenizer=saved:DIR and --config.model.text.vocab_size=N. Runs that have only their own
captions need no command: the tokenizer `trained` is learned as they start.
"""

import statistics

from absl import flags
from etils import epath

from vit_jax import cli
from vit_jax.data.tokenizers import FILE_NAME, Tokenizer
from vit_jax.data.tokenizers.trained import TrainedEncoder
from vit_jax.errors import UserError

_CAPTIONS = flags.DEFINE_string("captions", None, "Text file, one caption a line.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for tokenizer.json.", required=True)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 16_384, "Size of the text tower's table.")


def main() -> None:
    """Learns, saves and says how long captions become."""
    captions = _captions(_CAPTIONS.value)
    encoder = TrainedEncoder.train(captions, _VOCAB_SIZE.value)
    lengths = sorted(len(tokens) + 1 for tokens in encoder.encode(captions))
    # The length of rows is the text tower's business and is not saved; here none is cut.
    tokenizer = Tokenizer(encoder, vocab_size=_VOCAB_SIZE.value, context_length=lengths[-1])
    output = epath.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(output)
    print(f"{output / FILE_NAME}: {encoder.size()} ids, learned from {len(captions)} captions")
    print(f"ids a caption, end included: median {statistics.median(lengths):g}, most {lengths[-1]}")


def _captions(path: str) -> list[str]:
    file = epath.Path(path)
    if not file.is_file():
        raise UserError(f"no captions at {path}: expected a text file, one caption a line")
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.start} is {error.reason}") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise UserError(f"{path} has no captions: expected one a line")
    return captions


if __name__ == "__main__":
    cli.run(main)
