"""Text to token ids. `Tokenizer` is what the rest of vit_jax sees, `make_tokenizer` makes one.

| spec | vocabulary |
|---|---|
| `clip` | OpenAI's byte-pair encoding, 49408 ids |
| `sentencepiece:FILE[?options]` | a SentencePiece model, as of SigLIP or T5 |
| `huggingface:FILE?end=TOKEN&pad=TOKEN` | a `tokenizer.json` of Hugging Face tokenizers |
| `saved:DIR` | whatever was saved there, by a run or by `vit_jax.data.train_tokenizer` |
| `trained` | learned from the captions of the run by `Tokenizer.train` |
"""

from vit_jax.data.tokenizers.factory import check_spec, make_tokenizer
from vit_jax.data.tokenizers.tokenizer import FILE_NAME, Tokenizer

__all__ = ["FILE_NAME", "Tokenizer", "check_spec", "make_tokenizer"]
