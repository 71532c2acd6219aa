"""Figures against scikit-learn and brute force; padding and devices change nothing."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, top_k_accuracy_score

from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.evaluators import Suite
from vit_jax.evaluators.linear_probe import fit_logistic_regression
from vit_jax.evaluators.retrieval import best_rank
from vit_jax.evaluators.zeroshot import rank_of_target
from vit_jax.parallel.mesh import make_mesh
from vit_jax.training import assembly


@pytest.mark.parametrize("k", [1, 5])
def test_ranks_equal_scikit_learn(k):
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(200, 12)), rng.integers(0, 12, 200)
    found = np.mean(rank_of_target(scores, targets) < k)
    expected = top_k_accuracy_score(targets, scores, k=k, labels=np.arange(12))
    assert abs(found - expected) < 1e-12


def test_a_constant_model_scores_nothing():
    ranks = rank_of_target(np.zeros((7, 10)), np.arange(7))
    assert (ranks == 9).all()


def test_retrieval_equals_brute_force_with_ties_and_several_right_answers():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, (50, 30)).astype(float)
    right = rng.random((50, 30)) < 0.1
    right[:, 0] = True
    for row, answers, rank in zip(scores, right, best_rank(scores, right), strict=True):
        # Sorted by score; among equal scores wrong answers come first.
        order = sorted(range(30), key=lambda j: (-row[j], answers[j]))
        assert rank == next(place for place, j in enumerate(order) if answers[j])


def test_logistic_regression_equals_scikit_learn():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(5, 8))
    labels = rng.integers(0, 5, 400)
    features = (centres[labels] + rng.normal(size=(400, 8))).astype(np.float32)
    l2 = 1e-2
    reference = LogisticRegression(C=1 / (l2 * 400), tol=1e-8, max_iter=2000)
    reference.fit(features, labels)
    weights, bias = fit_logistic_regression(features, labels, num_classes=5, l2=l2)

    def objective(w, b):
        logits = features.astype(np.float64) @ w + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        return log_loss(labels, p / p.sum(1, keepdims=True)) + l2 / 2 * (w**2).sum()

    assert objective(weights, bias) - objective(reference.coef_.T, reference.intercept_) < 1e-6
    np.testing.assert_allclose(weights, reference.coef_.T, atol=5e-3)


@pytest.fixture
def make_embedder(tiny_config, tmp_path):
    def make(devices=8, batch_size=64):
        tiny_config.eval_batch_size = batch_size
        source = open_source("digits:train")
        tokenizer = assembly.build_tokenizer(tiny_config, source, tmp_path)
        model = assembly.build_model(tiny_config)
        mesh = make_mesh(devices)
        params = model.init(jax.random.key(0))
        tiny_config.mesh.data = devices
        return assembly.build_embedder(tiny_config, model, mesh, tokenizer), params

    return make


EVALS = {
    "zeroshot": {"digits": {"data": "digits:test", "templates": ("{}", "the digit {}")}},
    "retrieval": {"digits": {"data": "digits:test[:50]", "at": (1, 3)}},
    "probe": {"digits": {"train": "digits:train[:300]", "test": "digits:test"}},
}


def test_devices_and_batch_size_change_no_figure(make_embedder):
    """359 pictures are no multiple of any of these batches: padding is masked."""
    figures = []
    for devices, batch_size in ((8, 64), (1, 50), (2, 358)):
        embedder, params = make_embedder(devices, batch_size)
        figures.append(Suite(EVALS, embedder).run(params))
    assert figures[0] == figures[1] == figures[2]
    assert set(figures[0]) == {
        "zeroshot/digits/top1",
        "zeroshot/digits/top5",
        "retrieval/digits/image_to_text_recall@1",
        "retrieval/digits/image_to_text_recall@3",
        "retrieval/digits/text_to_image_recall@1",
        "retrieval/digits/text_to_image_recall@3",
        "probe/digits/top1",
    }


def test_zeroshot_by_hand(make_embedder):
    """Templates are averaged after normalising, and normalised again."""
    embedder, params = make_embedder()
    source = open_source("digits:test")
    images = embedder.images(params, source)
    assert images.shape == (359, 16)
    classes = []
    for name in source.class_names:
        each = [embedder.texts(params, [t.format(name)])[0] for t in ("{}", "the digit {}")]
        mean = np.mean([v / np.linalg.norm(v) for v in each], axis=0)
        classes.append(mean / np.linalg.norm(mean))
    expected = top_k_accuracy_score(source.labels, images @ np.asarray(classes).T, k=5)
    found = Suite({"zeroshot": EVALS["zeroshot"]}, embedder).run(params)
    assert abs(found["zeroshot/digits/top5"] - expected) < 1e-12


def test_present_classes_alone_compete(make_embedder):
    embedder, _ = make_embedder()
    suite = Suite(
        {"zeroshot": {"x": {"data": "emoji:heldout_names", "classes": "present"}}}, embedder
    )
    source = open_source("emoji:heldout_names")
    names = {source[i]["name"] for i in range(len(source))}
    evaluator = suite.evaluators["zeroshot/x"]
    assert set(evaluator.class_names) == names
    assert [evaluator.class_names[i] for i in evaluator._labels] == [
        source[i]["name"] for i in range(len(source))
    ]


def test_missing_optional_data_are_told(make_embedder, monkeypatch):
    from vit_jax.data.embedded import art, labelled

    monkeypatch.setattr(labelled, "FASHION_FOLDER", labelled.FASHION_FOLDER / "absent")
    monkeypatch.setattr(art, "why_no_noto", lambda: "no font")
    noto = {"data": "emoji:heldout_artist", "optional": True}
    suite = Suite({"zeroshot": {"noto": noto}}, make_embedder()[0])
    assert suite.evaluators == {}
    assert "no font" in suite.skipped["zeroshot/noto"]
    labelled.load.cache_clear()
    block = {"data": "fashion_mnist:test", "optional": True}
    suite = Suite({"zeroshot": {"fashion": block}}, make_embedder()[0])
    assert suite.evaluators == {}
    assert "dataset-fashion-mnist" in suite.skipped["zeroshot/fashion"]
    with pytest.raises(UserError, match="dataset-fashion-mnist"):
        Suite({"zeroshot": {"fashion": {"data": "fashion_mnist:test"}}}, make_embedder()[0])
    labelled.load.cache_clear()
