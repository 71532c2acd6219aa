"""Metrics and classifiers on features, against scikit-learn, SciPy and brute force."""

import jax
import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    top_k_accuracy_score,
)
from sklearn.neighbors import KNeighborsClassifier

from vit_jax.data.sources import Source
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError
from vit_jax.evaluators import (
    classification,
    few_shot,
    knn,
    logistic,
    metrics,
    prompts,
    retrieval,
    sgd_probe,
)
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.linear_probe import sweep
from vit_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def scored():
    """Scores (500, 12) with ties, and targets of 11 of the 12 classes."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 11, 500)
    scores = rng.normal(size=(500, 12)) + 1.5 * np.eye(12)[targets]
    return np.round(scores, 1), targets


def test_classification_equals_scikit_learn():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 12, 500)
    scores = rng.normal(size=(500, 12)) + 1.5 * np.eye(12)[targets]
    probabilities = softmax(scores, axis=1)
    found = dict(metrics.classification(scores, targets, probabilities))
    for k in (1, 5):
        expected = top_k_accuracy_score(targets, scores, k=k, labels=np.arange(12))
        assert abs(found[f"top{k}"] - expected) < 1e-12
    predicted = scores.argmax(1)
    assert abs(found["mean_per_class_recall"] - balanced_accuracy_score(targets, predicted)) < 1e-12
    # Guo et al. 2017, equation 3, bin by bin.
    confidence, correct = probabilities.max(1), predicted == targets
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert abs(found["ece"] - error) < 1e-12


def test_recall_is_the_mean_over_classes_that_occur(scored):
    _, targets = scored
    correct = np.random.default_rng(1).random(500) < 0.5
    expected = np.mean([correct[targets == c].mean() for c in range(11)])
    assert abs(metrics.mean_per_class_recall(correct, targets) - expected) < 1e-12


def test_a_constant_model_has_the_worst_ranks():
    ranks = metrics.rank_of_target(np.zeros((7, 10)), np.arange(7))
    assert (ranks == 9).all()


def test_average_precision_equals_scikit_learn_with_ties(scored):
    scores, _ = scored
    positive = np.random.default_rng(2).random(scores.shape) < 0.2
    positive[:, 3] = False  # a class without a positive example does not count
    present = [c for c in range(12) if c != 3]
    expected = average_precision_score(positive[:, present], scores[:, present], average="macro")
    assert abs(metrics.mean_average_precision(scores, positive) - expected) < 1e-12


def test_confusion_matrix_equals_scikit_learn(scored, tmp_path):
    scores, targets = scored
    names = [f"class {c}" for c in range(12)]
    metrics.write_confusion(tmp_path / "new" / "c.csv", scores.argmax(1), targets, names)
    found = np.genfromtxt(tmp_path / "new" / "c.csv", delimiter=",", skip_header=1)[:, 1:]
    expected = confusion_matrix(targets, scores.argmax(1), labels=np.arange(12))
    np.testing.assert_array_equal(found, expected)


def test_rounding_errors_do_not_change_ranks():
    """Columns that are equal up to rounding errors have the ranks of equal columns."""
    rng = np.random.default_rng(4)
    unit = rng.normal(size=(30, 16))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scores, targets = (unit[:20] @ unit.T)[:, np.arange(30) // 3], rng.integers(0, 30, 20)
    correct = rng.random(scores.shape) < 0.2
    correct[:, 0] = True
    ranks = metrics.rank_of_target(scores, targets), metrics.best_rank(scores, correct)
    assert (ranks[0] % 3 == 2).all()  # the two others of equal score come first
    for seed in range(20):
        rounded = scores + np.random.default_rng(seed).normal(0, 1e-7, scores.shape)
        np.testing.assert_array_equal(metrics.rank_of_target(rounded, targets), ranks[0])
        np.testing.assert_array_equal(metrics.best_rank(rounded, correct), ranks[1])
        np.testing.assert_array_equal(metrics.predictions(rounded), metrics.predictions(scores))


def test_excluded_classes_do_not_change_ranks(scored):
    scores, targets = scored
    wider = np.concatenate([np.full((len(scores), 2), -np.inf), scores], axis=1)
    ranks = metrics.rank_of_target(scores, targets)
    np.testing.assert_array_equal(metrics.rank_of_target(wider, targets + 2), ranks)
    np.testing.assert_array_equal(metrics.predictions(wider), metrics.predictions(scores) + 2)


@pytest.mark.parametrize("equal", ["shared", "apart"])
def test_retrieval_equals_brute_force(equal):
    """Ties, several captions per image, a caption of several images, more queries than a chunk."""
    rng = np.random.default_rng(1)
    images = rng.integers(-1, 2, (40, 4)).astype(float)
    image = np.repeat(np.arange(40), 5)
    caption = rng.integers(0, 60, 200) if equal == "shared" else np.arange(200)
    _, caption = np.unique(caption, return_inverse=True)
    texts = rng.integers(-1, 2, (caption.max() + 1, 4)).astype(float)
    for queries, candidates, query, candidate in (
        (images, texts, image, caption),
        (texts, images, caption, image),
    ):
        ranks = retrieval.nearest_rank(queries, candidates, query, candidate, chunk=7)
        for i, rank in enumerate(ranks):
            correct = set(candidate[query == i])
            # Sorted by score; among equal scores incorrect candidates come first.
            order = sorted(
                range(len(candidates)), key=lambda j: (-queries[i] @ candidates[j], j in correct)
            )
            assert rank == next(place for place, j in enumerate(order) if j in correct)


@pytest.mark.parametrize("devices", [1, 8])
def test_logistic_regression_equals_scikit_learn(devices):
    """At a penalty near 0 as well; 397 rows are not a multiple of the devices."""
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(5, 8))
    labels = rng.integers(0, 5, 397)
    features = (3 + centres[labels] + rng.normal(size=(397, 8))).astype(np.float32)
    fitted = logistic.LogisticRegression(features, labels, num_classes=5, mesh=make_mesh(devices))
    for l2 in (1e-2, 1e-5):
        reference = LogisticRegression(C=1 / (l2 * 397), tol=1e-8, max_iter=5000)
        reference.fit(features.astype(np.float64), labels)  # in float32 it stops early
        weights, bias = fitted.fit(l2)

        def objective(w, b, l2=l2):
            p = softmax(features.astype(np.float64) @ w + b, axis=1)
            return log_loss(labels, p) + l2 / 2 * (w**2).sum()

        expected = objective(reference.coef_.T, reference.intercept_)
        assert abs(objective(weights, bias) - expected) < 1e-6
        scores = np.sort(reference.decision_function(features.astype(np.float64)), axis=1)
        decided = scores[:, -1] - scores[:, -2] > 0.005  # beyond the rounding errors of float32
        assert decided.mean() > 0.99
        agree = logistic.predict(features, weights, bias) == reference.predict(features)
        assert agree[decided].all()
    assert abs(weights).max() > 1  # the small penalty allows large weights


def test_lars_after_a_batch_norm_equals_numpy():
    """Step by step in float64; the trust ratio scales the matrix only (You et al. 2017)."""
    rng = np.random.default_rng(6)
    x, y = rng.normal(3, 2, (50, 6)).astype(np.float32), rng.integers(0, 3, 50)
    options = {
        "epochs": 4, "warmup_epochs": 1.0, "batch_size": 16, "base_lr": 200.0, "momentum": 0.9,
        "seed": 1,
    }  # fmt: skip
    weights, bias = sgd_probe.train_head(x, y, num_classes=3, mesh=make_mesh(1), **options)

    key = jax.random.key(1)
    head = [0.01 * np.asarray(jax.random.truncated_normal(key, -2, 2, (6, 3)), np.float64)]
    head.append(np.zeros(3))
    velocity, mean, var = [0.0, 0.0], np.zeros(6), np.ones(6)
    for step in range(12):
        order = np.random.default_rng((1, step // 3)).permutation(50)
        rows = order[step % 3 * 16 : (step % 3 + 1) * 16]
        batch = x[rows].astype(np.float64)
        mean = 0.9 * mean + 0.1 * batch.mean(0)
        var = 0.9 * var + 0.1 * batch.var(0, ddof=1)
        normal = (batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-6)
        error = (softmax(normal @ head[0] + head[1], axis=1) - np.eye(3)[y[rows]]) / 16
        grads = [normal.T @ error, error.sum(0)]
        grads[0] *= 0.001 * np.linalg.norm(head[0]) / np.linalg.norm(grads[0])
        lr = 12.5 * (step / 3 if step < 3 else (1 + np.cos(np.pi * (step - 3) / 9)) / 2)
        velocity = [0.9 * v + lr * g for v, g in zip(velocity, grads, strict=True)]
        head = [p - v for p, v in zip(head, velocity, strict=True)]
    expected = head[0] / np.sqrt(var + 1e-6)[:, None]
    np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(bias, head[1] - mean @ expected, rtol=1e-3, atol=1e-4)


def test_joined_rows_equal_concatenated_rows():
    arrays = [np.arange(12.0).reshape(4, 3), np.arange(12.0, 27.0).reshape(5, 3)]
    rows = np.array([0, 3, 4, 8, 1])
    joined = logistic.Joined(arrays, rows)
    assert joined.shape == (5, 3)
    np.testing.assert_array_equal(joined[1:5], np.concatenate(arrays)[rows][1:5])
    mean, std = logistic.moments(np.concatenate(arrays))
    np.testing.assert_allclose(mean, np.concatenate(arrays).mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, np.concatenate(arrays).std(0), rtol=1e-6)


def test_the_sweep_finds_the_best_of_eight_steps_per_decade():
    penalties = []

    def accuracy(penalty):
        penalties.append(penalty)
        return -abs(np.log10(penalty) - 1.37)

    assert abs(np.log10(sweep(accuracy)) - 1.375) < 1e-9
    assert len(penalties) == 7 + 8
    assert sweep(lambda penalty: 0.5) == 1e6  # among equally good ones the largest


def test_ridge_equals_scikit_learn():
    """With more and with fewer examples than features."""
    rng = np.random.default_rng(3)
    for count in (60, 10):
        x, test = rng.normal(2, 3, (count, 20)), rng.normal(2, 3, (15, 20))
        labels = rng.integers(0, 4, count)
        scale = x.std(0) + 1e-5
        bias = np.full((1, 1), 100.0)
        a, b = (
            np.hstack([(rows - x.mean(0)) / scale, np.repeat(bias, len(rows), 0)])
            for rows in (x, test)
        )
        reference = Ridge(alpha=7.0, fit_intercept=False).fit(a, 2 * np.eye(4)[labels] - 1)
        found = few_shot.ridge_scores(x, labels, test, 4, 7.0)
        np.testing.assert_allclose(found, reference.predict(b), atol=1e-8)


def test_shots_are_drawn_from_every_class():
    labels = np.random.default_rng(4).integers(0, 3, 50)
    labels[labels == 2] = 0
    labels[7] = 2  # the only example of its class
    rows = few_shot.draw(labels, 5, seed=0)
    assert sorted(labels[rows]) == [0] * 5 + [1] * 5 + [2]
    assert len(set(rows)) == 11
    assert set(few_shot.draw(labels, 2, seed=0)) < set(rows)
    assert set(few_shot.draw(labels, 5, seed=1)) != set(rows)


def test_neighbors_equal_scikit_learn():
    rng = np.random.default_rng(5)
    train, test = (rng.normal(size=(n, 6)).astype(np.float32) for n in (100, 30))
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    labels = rng.integers(0, 4, 100)
    similarity, rows = knn.nearest(test, train, 11, query_chunk=9, key_chunk=40)
    for weights, ours in (("uniform", np.ones_like(similarity)), ("dino", similarity)):
        votes = np.exp(ours.astype(np.float64) / 0.07) if weights == "dino" else ours

        def dino(distance):
            return np.exp((1 - distance) / 0.07)

        reference = KNeighborsClassifier(
            11, metric="cosine", weights=dino if weights == "dino" else weights
        )
        expected = reference.fit(train, labels).predict(test)
        np.testing.assert_array_equal(knn.vote(labels[rows], votes, 4), expected)


def test_sigmoid_and_softmax_do_not_overflow():
    logits = np.array([[-1e4, 0.0, 1e4]])
    np.testing.assert_allclose(metrics.sigmoid(logits), expit(logits))
    np.testing.assert_allclose(metrics.softmax(logits), softmax(logits, axis=1))


# --- duplicates -----------------------------------------------------------------------------------


def test_equal_class_names_count_as_in_published_results():
    """Published accuracies are those of argmax: of equal scores the first."""
    rng = np.random.default_rng(7)
    names = ["missile", "crane", "Missile", "boat", "sunglasses", "sunglasses ", "cup"]
    same = np.array([0, 1, 0, 3, 4, 4, 6])
    targets = rng.integers(0, 7, 300)
    for scores in (np.eye(7)[same][:, same][targets], rng.normal(size=(300, 7))[:, same]):
        rounded = scores + rng.normal(0, 1e-7, scores.shape)
        contents = [metrics.text_content(name) for name in names]
        found = dict(metrics.classification(rounded, targets, softmax(rounded, axis=1), contents))
        assert found["top1"] == np.mean(scores.argmax(1) == targets)
        order = np.argsort(-scores, axis=1, kind="stable")
        assert found["top5"] == np.mean((order[:, :5] == targets[:, None]).any(1))
    constant = np.ones((300, 7))
    assert dict(metrics.classification(constant, targets, constant / 7, contents))["top1"] == 0


@pytest.mark.parametrize("equal", ["shared", "apart"])
def test_equal_captions_and_images_are_no_rivals(equal):
    """A table with one row per caption, captions of several images, and images that occur twice."""
    pixels = [np.full((2, 2, 3), value, np.uint8) for value in (0, 0, 1, 2, 2, 3)]
    captions = ["a fox", "A red fox", "a  Fox", "a hen", "an egg", "an egg"]
    image_of = [0, 0, 1, 2, 2, 3]

    class Rows(Source):
        def __len__(self):
            return len(pixels)

        def __getitem__(self, index):
            return {"image": pixels[index], "captions": [captions[index]]}

    class FakeEmbedder(Embedder):
        def __init__(self):
            self.tokenizer = open_tokenizer("clip", vocab_size=49408, context_length=8)

        def require_text_embeddings(self):
            pass

        def open_source(self, spec):
            return Rows()

        def image_embeddings(self, params, source):
            value = [int(source[i]["image"].flat[0]) for i in range(len(source))]
            return self.meaning_of_images[value]

        def text_embeddings(self, params, texts):
            return np.stack([self.vectors[metrics.text_content(text)] for text in texts])

    embedder = FakeEmbedder()
    contents = sorted({metrics.text_content(text) for text in captions})
    embedder.vectors = dict(zip(contents, np.eye(4), strict=True))
    # The perfect model: an image is as close to each of its captions.
    embedder.meaning_of_images = np.zeros((4, 4))
    for image, caption in zip(image_of, captions, strict=True):
        embedder.meaning_of_images[image] += embedder.vectors[metrics.text_content(caption)]
    config = retrieval.Retrieval.Config(data="x", at=(1,), equal_captions=equal)
    found = dict(retrieval.Retrieval(config, embedder).run({}))
    if equal == "shared":
        assert found["image_to_text_recall@1"] == found["text_to_image_recall@1"] == 1
    else:  # image 1 has the second "a fox" only, and image 3 the second "an egg"
        assert found["image_to_text_recall@1"] == 0.5
    embedder.meaning_of_images = np.ones((4, 4))
    embedder.vectors = {content: np.ones(4) for content in contents}
    found = dict(retrieval.Retrieval(config, embedder).run({}))
    assert [value for name, value in found.items() if "@1" in name] == [0, 0]


def test_folders_of_some_of_imagenets_classes_meet_a_head_of_all():
    """In any order; 1,000 outputs, of which the labels select the right ones."""
    wnids = prompts.imagenet_wnids()
    chosen = [999, 7, 500]

    class Images(Source):
        def __init__(self):
            self.class_names = [wnids[i] for i in chosen]

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return {"image": np.zeros((2, 2, 3), np.uint8), "label": index % 3}

    class FakeEmbedder(Embedder):
        def __init__(self):
            self.outputs = 1000

        def open_source(self, spec, names_file=None):
            return Images()

        def class_logits(self, params, source):
            return np.eye(self.outputs, dtype=np.float32)[[chosen[i % 3] for i in range(6)]]

    config = classification.Classification.Config(data="x", classes="present")
    evaluator = classification.Classification(config, embedder := FakeEmbedder())
    found = dict(evaluator.run({}))
    assert (found["top1"], found["mean_per_class_recall"]) == (1, 1)
    embedder.outputs = 1001
    with pytest.raises(UserError, match="has 3 classes, the model has 1001 outputs"):
        dict(evaluator.run({}))
