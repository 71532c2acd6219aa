"""Tokenizers: text to token ids.

`Tokenizer` lays out token ids in rows of one length. `open_tokenizer` opens one by a short spec:

| spec | vocabulary |
|---|---|
| `clip` | OpenAI's byte-pair encoding, 49,408 ids |
| `sentencepiece:FILE[?options]` | a SentencePiece model, as those of SigLIP and T5 |
| `gemma:FILE[?options]` | Gemma's for SigLIP 2, a SentencePiece model or a `tokenizer.json` |
| `huggingface:FILE?end=TOKEN&pad=TOKEN` | a `tokenizer.json` of Hugging Face tokenizers |
| `saved:DIR` | saved by a run or by `vit_jax.data.train_tokenizer` |
| `package.module:Name[:PLACE][?options]` | an `Encoder` from outside this package |

The spec `trained` is a vocabulary learned from the training captions, see `learn_tokenizer`.
"""

from vit_jax.data.tokenizers.encoder import Encoder
from vit_jax.data.tokenizers.factory import TRAINED, learn_tokenizer, open_tokenizer
from vit_jax.data.tokenizers.layout import Layout
from vit_jax.data.tokenizers.tokenizer import FILE_NAME, Tokenizer

__all__ = [
    "FILE_NAME",
    "TRAINED",
    "Encoder",
    "Layout",
    "Tokenizer",
    "learn_tokenizer",
    "open_tokenizer",
]
