"""Tokenizers: ids, layout, truncation, any text, saving, specs, errors."""

import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tokenizers as hf

from tests.fixtures.tokenizers.make_tokenizers import SAMPLE, captions
from vit_jax.data.sources import Source
from vit_jax.data.tokenizers import (
    FILE_NAME,
    learn_tokenizer,
    open_tokenizer,
)
from vit_jax.data.tokenizers.trained import TrainedEncoder
from vit_jax.errors import UserError

CAPTIONS = ["red apple", "green apple", "red car", "a photo of a red apple", "blue sky"]


class Captions(Source):
    """A source of captions without images."""

    def __init__(self, captions):
        self.captions = captions

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        return {"captions": [self.captions[index]]}


def learn(captions, templates=(), vocab_size=300, context_length=6):
    return learn_tokenizer(
        Captions(list(captions)), templates, vocab_size=vocab_size, context_length=context_length
    )


@pytest.fixture(scope="module")
def clip():
    return open_tokenizer("clip", vocab_size=49408, context_length=77)


@pytest.fixture(scope="module")
def trained():
    return learn(CAPTIONS)


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
    """A model with the special ids of T5: padding 0, end 1, unknown 2."""
    package = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    package.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in CAPTIONS for _ in range(20)]),
        model_prefix=str(folder / "tiny"),
        vocab_size=24,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder / "tiny.model"


@pytest.fixture(scope="module")
def huggingface_file(tmp_path_factory):
    """A word-level file with ids 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "apple", "car"]
    model = hf.Tokenizer(hf.models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    model.normalizer = hf.normalizers.Lowercase()
    model.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    model.add_special_tokens(words[:4])
    model.enable_truncation(3)  # lengths in the file are ignored
    model.enable_padding(length=9)
    path = tmp_path_factory.mktemp("huggingface") / "tokenizer.json"
    model.save(str(path))
    return path


@pytest.fixture(params=["clip", "trained", "sentencepiece", "huggingface"])
def any_tokenizer(request):
    """One tokenizer of each kind."""
    if request.param in ("clip", "trained"):
        return request.getfixturevalue(request.param)
    file = request.getfixturevalue(f"{request.param}_file")
    options = "?end=[SEP]&pad=[PAD]&start=[CLS]" if request.param == "huggingface" else ""
    return open_tokenizer(f"{request.param}:{file}{options}", vocab_size=64, context_length=8)


# --- CLIP -----------------------------------------------------------------------------------------


def test_clip_ids_equal_the_stored_ones(clip):
    sample = json.loads(SAMPLE.read_text())
    assert len(sample) >= 300
    ids = clip([text for text, _ in sample])
    for row, (text, expected) in zip(ids, sample, strict=True):
        assert row[: len(expected)].tolist() == expected, ascii(text)
        assert not row[len(expected) :].any(), ascii(text)


def test_clip_ids_of_short_texts(clip):
    assert clip("a diagram")[0, :5].tolist() == [49406, 320, 22697, 49407, 0]
    assert clip("")[0, :3].tolist() == [49406, 49407, 0]


def test_clip_truncation_keeps_the_end(clip):
    row = clip("red apple " * 100)[0]
    assert row[0] == 49406
    assert row[-1] == row.max() == 49407
    assert (row == 49407).sum() == 1


# --- learned from captions ------------------------------------------------------------------------


def test_trained_layout(trained):
    ids = trained(["red apple", "apple"])
    assert ids.shape == (2, 6)
    assert ids.dtype == np.int32
    end = trained.vocab_size - 1
    for row in ids:
        place = int(np.argmax(row))
        assert row[place] == end
        assert (row[:place] > 0).all()
        assert not row[place + 1 :].any()


def test_trained_truncation_keeps_the_end(trained):
    row = trained("a very long caption that does not fit")[0]
    assert row[-1] == trained.vocab_size - 1
    assert (row[:-1] > 0).all()


def test_trained_case_and_normal_form_do_not_matter(trained):
    np.testing.assert_array_equal(trained("Red APPLE"), trained("red apple"))
    np.testing.assert_array_equal(trained("caf\u00e9"), trained("cafe\u0301"))


def test_order_of_captions_does_not_matter(trained):
    other = learn(reversed(CAPTIONS))
    np.testing.assert_array_equal(other(CAPTIONS), trained(CAPTIONS))


def test_words_of_templates_are_learned():
    """A tenth of the captions' number of repetitions suffices to make words of a template."""
    captions = [f"{first}{last}" for first in "abcdefghij" for last in "klmnopqrst"]
    plain, prompted = (learn(captions, templates) for templates in ((), ["a photo of {}"]))
    lengths = [(tokens("a photo of ak") != 0).sum() for tokens in (plain, prompted)]
    assert lengths[1] < lengths[0] == 6


def test_captions_are_class_names_where_there_are_none():
    class Names(Captions):
        def __getitem__(self, index):
            return {"label": 0, "name": self.captions[index]}

    tokens = learn_tokenizer(Names(CAPTIONS), (), vocab_size=300, context_length=6)
    np.testing.assert_array_equal(tokens(CAPTIONS), learn(CAPTIONS)(CAPTIONS))


def test_class_names_are_learned_where_images_have_boxes():
    class Boxes(Captions):
        def __getitem__(self, index):
            assert index == 0, "the first example has the names of all classes"
            return {"boxes": [], "names": [], "vocabulary": self.captions}

    tokens = learn_tokenizer(Boxes(CAPTIONS), (), vocab_size=300, context_length=6)
    np.testing.assert_array_equal(tokens(CAPTIONS), learn(CAPTIONS)(CAPTIONS))


def test_files_of_early_runs_can_be_opened(trained, tmp_path):
    """They are bare files of the library."""
    bare = json.dumps(TrainedEncoder.train(CAPTIONS, 300).state()["model"])
    (tmp_path / FILE_NAME).write_text(hf.Tokenizer.from_str(bare).to_str(pretty=True))
    loaded = open_tokenizer(f"saved:{tmp_path}", vocab_size=300, context_length=6)
    assert loaded.kind == "trained"
    np.testing.assert_array_equal(loaded(CAPTIONS), trained(CAPTIONS))


# --- SentencePiece --------------------------------------------------------------------------------


def test_sentencepiece_as_siglip(sentencepiece_file):
    sentencepiece = pytest.importorskip("sentencepiece")
    tokenizer = open_tokenizer(
        f"sentencepiece:{sentencepiece_file}", vocab_size=24, context_length=12
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    tokens = model.encode("red apple", out_type=int)
    expected = tokens + [1] * (12 - len(tokens))  # the end is 1, and so is the padding
    # Case, punctuation and white space are ignored; `_` is a space.
    for text in ("red apple", " Red,  APPLE!\n", "red_apple", "&quot;red&quot; apple"):
        assert tokenizer(text)[0].tolist() == expected, text
    long = tokenizer("red apple " * 9)[0]
    assert long[-1] == 1
    assert long[:-1].tolist() == model.encode("red apple " * 9, out_type=int)[:11]
    assert (tokenizer("")[0] == 1).all()


def test_sentencepiece_as_t5(sentencepiece_file):
    sentencepiece = pytest.importorskip("sentencepiece")
    tokenizer = open_tokenizer(
        f"sentencepiece:{sentencepiece_file}?clean=none&pad=<pad>", vocab_size=24, context_length=9
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    tokens = model.encode("Red car", out_type=int)
    assert tokenizer("Red car")[0].tolist() == [*tokens, 1, *[0] * (8 - len(tokens))]


def test_sentencepiece_errors(sentencepiece_file, tmp_path, monkeypatch):
    def make(spec):
        return open_tokenizer(spec, vocab_size=24, context_length=8)

    with pytest.raises(UserError, match="no SentencePiece model at /nowhere"):
        make("sentencepiece:/nowhere")
    for content in (
        b"",
        b"not a model",
        bytes(range(256)) * 20,
        sentencepiece_file.read_bytes()[:-100],
    ):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(
            UserError, match=f"bad is not a SentencePiece model.*{len(content)} bytes"
        ):
            make(f"sentencepiece:{tmp_path / 'bad'}")
    with pytest.raises(UserError, match=r"pad=<pat>: no such token.*<pad>, </s>, <unk>"):
        make(f"sentencepiece:{sentencepiece_file}?pad=<pat>")
    with pytest.raises(UserError, match=r"vocab_size=23 is too small.*at least 24"):
        open_tokenizer(f"sentencepiece:{sentencepiece_file}", vocab_size=23, context_length=8)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="pip install"):
        make(f"sentencepiece:{sentencepiece_file}")


# --- Hugging Face files ---------------------------------------------------------------------------


def test_huggingface_layout(huggingface_file):
    def make(options):
        spec = f"huggingface:{huggingface_file}?{options}"
        return open_tokenizer(spec, vocab_size=8, context_length=6)

    bert = make("end=[SEP]&pad=[PAD]&start=[CLS]")
    assert bert("Red apple")[0].tolist() == [2, 4, 6, 3, 0, 0]
    assert bert("red " * 9)[0].tolist() == [2, 4, 4, 4, 4, 3]
    plain = make("end=[SEP]&pad=[SEP]")
    assert plain(["green unseen", ""]).tolist() == [[5, 1, 3, 3, 3, 3], [3] * 6]


def test_huggingface_errors(huggingface_file, tmp_path):
    def make(spec):
        return open_tokenizer(spec, vocab_size=8, context_length=6)

    with pytest.raises(
        UserError, match=r"the tokens that close and fill a row are not set.*\[PAD\], \[UNK\]"
    ):
        make(f"huggingface:{huggingface_file}?end=[SEP]")
    with pytest.raises(UserError, match=r"end=\[EOS\]: no such token in .*tokenizer.json"):
        make(f"huggingface:{huggingface_file}?end=[EOS]&pad=[PAD]")
    with pytest.raises(UserError, match="unknown cleaning 'lowr'; did you mean 'lower'"):
        make(f"huggingface:{huggingface_file}?end=[SEP]&pad=[PAD]&clean=lowr")
    with pytest.raises(UserError, match="no tokenizer file at /nowhere"):
        make("huggingface:/nowhere?end=[SEP]&pad=[PAD]")
    for content in (b"", b"{}", b"[1]", b"\xff\xfe\x00", huggingface_file.read_bytes()[:-50]):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(UserError, match="bad is not a file of Hugging Face tokenizers"):
            make(f"huggingface:{tmp_path / 'bad'}?end=[SEP]&pad=[PAD]")


# --- all kinds ------------------------------------------------------------------------------------


def test_any_text_has_ids(any_tokenizer):
    """Captions of every plane of Unicode, with control characters and lone surrogates."""
    texts = [*captions(600, seed=2, unassigned=True), "\x00", "\U0010ffff", "\ud800" * 50]
    texts += [
        "".join(map(chr, range(start, start + 0x400))) for start in range(0, 0x110000, 0x8000)
    ]
    ids = any_tokenizer(texts)
    assert ids.shape == (len(texts), any_tokenizer.context_length)
    assert ids.dtype == np.int32
    assert ids.min() >= 0
    assert ids.max() < any_tokenizer.vocab_size
    end = any_tokenizer("")[0].max() if any_tokenizer.kind != "huggingface" else 3
    assert (ids == end).any(axis=1).all()


def test_saved_and_pickled(any_tokenizer, tmp_path):
    sizes = {
        "vocab_size": any_tokenizer.vocab_size,
        "context_length": any_tokenizer.context_length,
    }
    texts = [*CAPTIONS, "Ünseen, & text!", ""]
    any_tokenizer.save(tmp_path)
    assert json.loads((tmp_path / FILE_NAME).read_text())["kind"] == any_tokenizer.kind
    others = [
        open_tokenizer(f"saved:{tmp_path}", **sizes),
        pickle.loads(pickle.dumps(any_tokenizer)),
    ]
    for other in others:
        assert (other.kind, other.vocab_size) == (any_tokenizer.kind, any_tokenizer.vocab_size)
        np.testing.assert_array_equal(other(texts), any_tokenizer(texts))


def test_end_is_the_largest_id_of_clip_and_learned_vocabularies(any_tokenizer):
    assert any_tokenizer.end_is_largest == (any_tokenizer.kind in ("clip", "trained"))


def test_the_text_of_a_row_has_the_same_tokens(any_tokenizer):
    for text in CAPTIONS:
        row = any_tokenizer(text)[0]
        found = any_tokenizer.text_of(row.tolist())
        assert found
        np.testing.assert_array_equal(any_tokenizer(found)[0], row)
    assert any_tokenizer.text_of(any_tokenizer("")[0].tolist()) == ""


def test_one_text_and_many(any_tokenizer):
    many = any_tokenizer(CAPTIONS)
    for text, row in zip(CAPTIONS, many, strict=True):
        np.testing.assert_array_equal(any_tokenizer(text), row[None])
    assert any_tokenizer([]).shape == (0, any_tokenizer.context_length)


def test_errors(trained, tmp_path):
    def load(vocab_size=300, context_length=6):
        sizes = {"vocab_size": vocab_size, "context_length": context_length}
        return open_tokenizer(f"saved:{tmp_path}", **sizes)

    with pytest.raises(UserError, match="no tokenizer at"):
        load()
    trained.save(tmp_path)
    with pytest.raises(UserError, match=r"vocab_size=260 is too small.*at least"):
        load(vocab_size=260)
    with pytest.raises(UserError, match="context_length=1: expected at least 2"):
        load(context_length=1)
    with pytest.raises(UserError, match="expected at least 258"):
        learn(CAPTIONS, vocab_size=100)
    bad = {
        "": "is not a saved tokenizer",
        "[]": "is not a saved tokenizer",
        "{}": "unknown tokenizer in .*None",
        '{"kind": "trainde"}': "did you mean 'trained'",
        '{"kind": "trained"}': "is not a saved trained tokenizer",
        '{"kind": "huggingface", "model": {}}': "is not a saved huggingface tokenizer",
        '{"kind": "sentencepiece", "source": "a", "model": "x"}': "is not a saved sentencepiece",
        '{"model": {}}': "not a file of Hugging Face tokenizers",
    }
    for content, message in bad.items():
        (tmp_path / FILE_NAME).write_text(content)
        with pytest.raises(UserError, match=message):
            load()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clup", "unknown tokenizer 'clup'; did you mean 'clip'"),
        ("sentencepeace:/a", "did you mean 'sentencepiece'"),
        ("sentencepiece", "expected sentencepiece:PATH"),
        ("huggingface:?end=x", "expected huggingface:PATH"),
        ("clip:/a", "expected clip"),
        ("clip?pad=x", "unknown tokenizer"),
        ("sentencepiece:/a?padd=x", "unknown option .* 'padd'; did you mean 'pad'"),
        ("saved:/a?pad=x", "unknown option"),
        ("huggingface:/a?end=", "end has no value, expected end=VALUE"),
        ("saved:", "expected saved:DIR"),
        ("trained", "learned from captions"),
        ("no_project.text:Words:/a", "cannot be imported"),
    ],
)
def test_spec_errors(spec, message):
    with pytest.raises(UserError, match=message):
        open_tokenizer(spec, vocab_size=300, context_length=8)


def test_training_command(tmp_path):
    file, output = tmp_path / "captions.txt", tmp_path / "out"
    file.write_text("\n".join(CAPTIONS) + "\n\n")

    def run(*flags):
        command = [sys.executable, "-m", "vit_jax.data.train_tokenizer", *flags]
        root = pathlib.Path(__file__).parents[2]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)

    done = run(f"--captions={file}", f"--output={output}", "--vocab_size=300")
    assert done.returncode == 0, done.stderr
    assert "learned from 5 captions" in done.stdout
    loaded = open_tokenizer(f"saved:{output}", vocab_size=300, context_length=6)
    np.testing.assert_array_equal(loaded(CAPTIONS), learn(CAPTIONS)(CAPTIONS))

    file.write_bytes(b"red\xff\n")
    bad = run(f"--captions={file}", f"--output={output}")
    assert bad.returncode == 2
    assert "is not UTF-8: byte 3" in bad.stderr
