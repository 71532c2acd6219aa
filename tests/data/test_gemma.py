"""Gemma's tokenizer as SigLIP 2 uses it."""

import pytest
import tokenizers as hf

from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.data.tokenizers.factory import open_encoder
from vit_jax.errors import UserError

CAPTIONS = ["red apple", "green apple", "red car", "a photo of a red apple", "blue sky"]


def test_gemma_in_files_of_both_kinds(tmp_path):
    """SigLIP 2: padding 0, end 1, no start; lower case without punctuation."""
    package = pytest.importorskip("sentencepiece")
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20),
        model_prefix=str(tmp_path / "gemma"),
        vocab_size=24,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=2,
    )
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "red", "apple"]
    model = hf.Tokenizer(hf.models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    model.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    pieces = package.SentencePieceProcessor(model_file=str(tmp_path / "gemma.model"))
    for file, tokens in {
        "gemma.model": pieces.encode("red apple", out_type=int),
        "tokenizer.json": [4, 5],
    }.items():
        opened = open_tokenizer(f"gemma:{tmp_path / file}", vocab_size=24, context_length=12)
        expected = [*tokens, 1, *[0] * (11 - len(tokens))]
        assert opened("Red, APPLE!")[0].tolist() == expected
        assert opened("apple " * 30)[0, -1] == 1
    kept = open_encoder(f"gemma:{tmp_path / 'tokenizer.json'}?clean=none")
    assert kept.encode(["Red apple"]) == [[3, 5]]
    with pytest.raises(UserError, match="expected gemma:PATH"):
        open_encoder("gemma")
