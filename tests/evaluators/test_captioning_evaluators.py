"""Likelihoods, generated captions and zero-shot classes of a tiny captioner, against NumPy."""

import importlib.util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.caption_reference import decode
from tests.helpers import tiny_clip
from vit_jax.config import default_config
from vit_jax.errors import MissingPackageError, UserError
from vit_jax.evaluators import caption_scores
from vit_jax.evaluators.caption_zeroshot import CaptionZeroShot
from vit_jax.evaluators.captioning import Captioning
from vit_jax.evaluators.retrieval import Retrieval
from vit_jax.evaluators.zeroshot import ZeroShot
from vit_jax.experiment import build, train

DATA, TEMPLATES = "digits:test[:6]", ("{}", "the digit {}")


def tiny_cappa():
    """Captioner with 20,000 parameters on scikit-learn's digits."""
    config = default_config(model="cappa_emoji", objective="captioning")
    config.model.image.update(
        image_size=8, patch_size=4, width=16, depth=1, num_heads=2, mlp_dim=16, patch_dropout=0.0
    )
    config.model.decoder.update(
        vocab_size=300, context_length=8, width=16, depth=1, num_heads=2, mlp_dim=16
    )
    config.data.train, config.data.templates = "digits:train", TEMPLATES
    config.batch_size, config.total_steps, config.mesh.data = 32, 10, 1
    config.eval_batch_size = 4  # 6 images leave padding
    return config


class Captioner(NamedTuple):
    """A captioner with random parameters, and the patches of six images, in float64."""

    embedder: Any
    params: Any
    memory: Any


@pytest.fixture(scope="module")
def captioner():
    embedder = build(tiny_cappa()).embedder()
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(scale=0.5, size=x.shape), jnp.float32),
        embedder.model.shapes(),
    )
    source = embedder.open_source(DATA)
    pixels = np.stack([embedder.inputs.pack(embedder.inputs(each["image"])) for each in source])
    memory = embedder.compile(
        lambda model, packed: model.encode_memory(embedder.inputs.normalize(packed))
    )(params, pixels)
    return Captioner(embedder, params, np.float64(memory))


def log_probabilities(captioner, image, tokens):
    """Log-probabilities (T, V) of the tokens of a caption."""
    decoder = jax.tree.map(np.float64, captioner.params["decoder"])
    return decode(decoder, np.asarray(tokens), captioner.memory[image], parallel=False)


def log_likelihood(captioner, image, tokens):
    found = log_probabilities(captioner, image, tokens)
    return found[np.arange(len(tokens)), tokens][tokens != 0].sum()


def evaluate(evaluator, captioner):
    captioner.embedder.forget()
    return dict(evaluator.run(captioner.params))


def test_likelihoods_and_greedy_captions(captioner):
    embedder = captioner.embedder
    evaluator = Captioning(Captioning.Config(data=DATA, template="the digit {}"), embedder)
    found = evaluate(evaluator, captioner)
    names = [embedder.open_source(DATA)[i]["name"] for i in range(6)]
    tokens = embedder.tokenize([f"the digit {name}" for name in names])
    expected = [log_likelihood(captioner, i, tokens[i]) for i in range(6)]
    np.testing.assert_allclose(found["log_likelihood"], np.mean(expected), rtol=1e-5)
    nats = -np.sum(expected) / np.sum(tokens != 0)
    np.testing.assert_allclose(found["nats_per_token"], nats, rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"], np.exp(nats), rtol=1e-4)
    assert found["exact_match"] == 0

    tokenizer = embedder.require_text()
    for image, caption in enumerate(evaluator.captions):
        row = np.zeros(8, np.int32)
        for at in range(len(row)):
            logits = log_probabilities(captioner, image, row)[at]
            row[at] = 1 + np.argmax(logits[1:])  # never padding
            if row[at] == tokenizer.layout.end:
                break
        assert caption == tokenizer.text_of(row.tolist())


def test_zero_shot_by_likelihood(captioner):
    config = CaptionZeroShot.Config(data=DATA, templates=TEMPLATES)
    evaluator = CaptionZeroShot(config, captioner.embedder)
    found = evaluate(evaluator, captioner)
    scores = np.asarray(
        [
            [
                np.logaddexp.reduce(
                    [
                        log_likelihood(
                            captioner, i, captioner.embedder.tokenize([t.format(name)])[0]
                        )
                        for t in TEMPLATES
                    ]
                )
                for name in evaluator.class_names
            ]
            for i in range(6)
        ]
    )
    assert found["top1"] == np.mean(scores.argmax(axis=1) == evaluator.targets)
    captioner.embedder.forget()
    given, probabilities = evaluator._scores(captioner.params)
    np.testing.assert_allclose(given, scores - np.log(2), rtol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)

    # The likelihoods are kept: another evaluator of the same captions and images reads them.
    config = CaptionZeroShot.Config(data=DATA, templates=TEMPLATES, prior=0.7)
    given, _ = CaptionZeroShot(config, captioner.embedder)._scores(captioner.params)
    prior = np.log(np.exp(scores).mean(axis=0) / 2)
    np.testing.assert_allclose(given, scores - np.log(2) - 0.7 * prior, rtol=1e-4)


@pytest.mark.release
@pytest.mark.parametrize("method", ["beam", "top_p"])
def test_other_methods_do_not_depend_on_the_batch(captioner, method, monkeypatch):
    captions = []
    for size in (4, 6):
        monkeypatch.setattr(captioner.embedder, "batch_size", size)
        evaluator = Captioning(Captioning.Config(data=DATA, method=method), captioner.embedder)
        evaluate(evaluator, captioner)
        captions.append(evaluator.captions)
    assert captions[0] == captions[1]
    assert len(set(captions[0])) > 1


@pytest.mark.release
def test_a_captioner_learns(tmp_path):
    """Held-out captions of digits are 10 times as likely per token as by chance, and read."""
    config = tiny_cappa()
    config.model.image.update(patch_size=2, width=32, depth=2, mlp_dim=64)
    config.model.decoder.update(width=32, mlp_dim=64)
    config.batch_size, config.total_steps, config.compute.scan = 64, 300, False
    config.data.templates, config.objective.parallel_fraction = ("{}",), 0.5
    config.optim.update(lr=5e-3, warmup_steps=20)
    config.log_steps, config.checkpoint_percent, config.eval_batch_size = 50, 0.0, 128
    held_out = {"data": "digits:test[:256]"}
    config.evals.captioning = {"digits": held_out}
    config.evals.caption_zeroshot = {"digits": held_out}
    found = train(config, tmp_path)
    assert found["captioning/digits/perplexity"] < 300 / 10
    assert found["captioning/digits/exact_match"] > 0.5
    assert found["caption_zeroshot/digits/top1"] > 0.5


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "beem"}, "did you mean 'beam'"),
        ({"scores": ("blue",)}, "did you mean 'bleu'"),
        ({"method": "top_p", "top_p": 0.0}, r"top_p=0\.0, .*: expected 1 or more beams"),
    ],
)
def test_errors(captioner, keys, message):
    with pytest.raises(UserError, match=message):
        Captioning(Captioning.Config(data=DATA, **keys), captioner.embedder)


def test_a_model_without_a_decoder():
    embedder = build(tiny_clip()).embedder()
    for evaluator in (Captioning, CaptionZeroShot):
        with pytest.raises(UserError, match="needs a model with a decoder of captions"):
            evaluator(evaluator.Config(data=DATA), embedder)


def test_a_captioner_embeds_no_texts(captioner):
    for evaluator in (ZeroShot, Retrieval):
        with pytest.raises(UserError, match="CapPaConfig does not embed texts; for captions use"):
            evaluator(evaluator.Config(data=DATA), captioner.embedder)


def test_padding_that_the_decoder_would_learn():
    config = tiny_cappa()
    config.model.decoder.pad_id = 7
    with pytest.raises(
        UserError, match=r"'trained' fills captions with the id 0, the decoder leave"
    ):
        _ = build(config).tokenizer


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'vit_jax\[captioning\]'"):
        caption_scores.check_installed("cider")


@pytest.mark.parity
def test_scores():
    """Values by hand for BLEU; equal captions have the largest CIDEr, 10."""
    references = [["a cat on the mat", "the cat"], ["two dogs run in the park"]]
    assert caption_scores.bleu(["A cat on the mat", "two dogs run in the park"], references) == (
        pytest.approx(100)
    )
    # Precisions 9/10, 6/8, 4/6 and 2/4 of 1- to 4-grams, and no brevity penalty.
    found = caption_scores.bleu(["a cat on the mat", "two cats run in the park"], references[:2])
    assert found == pytest.approx(100 * (10 / 11 * 7 / 9 * 5 / 7 * 3 / 5) ** 0.25)
    exact = caption_scores.cider(["two dogs, run in the Park!"] * 2, [references[1], references[0]])
    assert exact == pytest.approx(5.0, abs=0.3)
