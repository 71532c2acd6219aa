"""Token ids against the live open_clip and transformers: pytest -m parity.

Both come with `pip install -e ".[parity,test]"`; tests of a missing one are skipped.
"""

import numpy as np
import pytest

from tests.fixtures.tokenizers.make_tokenizers import captions
from vit_jax.data.tokenizers import open_tokenizer

pytestmark = pytest.mark.parity

COUNT = 100_000


@pytest.mark.timeout(1800)
def test_clip_ids_equal_those_of_open_clip():
    reference = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    tokenizer = open_tokenizer("clip", vocab_size=49408, context_length=77)
    texts = list(captions(COUNT, seed=1))
    assert len(texts) == COUNT
    expected = reference(texts).numpy()
    different = [
        (text, ours.tolist(), theirs.tolist())
        for text, ours, theirs in zip(texts, tokenizer(texts), expected, strict=True)
        if not np.array_equal(ours, theirs)
    ]
    assert not different, f"{len(different)} of {COUNT}, the first: {different[0]!a}"
    # Rows of all lengths occur.
    lengths = (expected != 0).sum(1)
    assert lengths.min() == 2
    assert (lengths == 77).sum() > COUNT // 100


def test_siglip_ids_equal_those_of_transformers(tmp_path):
    """SentencePiece by transformers, after open_clip's cleaning: `ViT-B-16-SigLIP`."""
    sentencepiece = pytest.importorskip("sentencepiece")
    reference = pytest.importorskip("open_clip.tokenizer")
    transformers = pytest.importorskip("transformers")
    texts = list(captions(5_000, seed=3))
    cleaned = [reference.canonicalize_text(reference.basic_clean(text)) for text in texts]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in cleaned if text.isascii()]),
        model_prefix=str(tmp_path / "tiny"),
        vocab_size=600,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    file = str(tmp_path / "tiny.model")
    ids = open_tokenizer(f"sentencepiece:{file}", vocab_size=600, context_length=64)(texts)
    expected = transformers.SiglipTokenizer(file)(
        cleaned, padding="max_length", max_length=64, truncation=True
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=file)
    different = 0
    for ours, theirs in zip(ids.tolist(), expected.input_ids, strict=True):
        if ours != theirs:
            # Only segmentations of equal score: transformers adds a prefix to the text, whose score
            # changes the rounding of the sums.
            scores = [sum(map(processor.GetScore, row)) for row in (ours, theirs)]
            assert abs(scores[0] - scores[1]) < 1e-4, (ours, theirs)
            different += 1
    assert different <= 5
