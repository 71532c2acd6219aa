"""What runs predicted, on the page: against scikit-learn, and within 5 MB for ten runs."""

import re

import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from tests.test_report import write_run
from tests.test_report_page import Links
from vit_jax.evaluators import metrics, predictions
from vit_jax.report import report
from vit_jax.reporting.confusion import MOST, matrix, most_confused
from vit_jax.reporting.galleries import box_gallery, fitting, mistakes, queries
from vit_jax.reporting.reliability import BINS, reliability

NAMES = [f"class <{i}>" for i in range(30)]


def noise_jpeg(seed):
    """The largest thumbnail there can be, about 9 kB."""
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), np.uint8)
    return predictions.thumbnail(Image.fromarray(pixels))


IMAGES = np.array([noise_jpeg(i) for i in range(32)], np.bytes_)


def classifier(seed=0, count=400, classes=30):
    """Stored predictions of a classifier that mostly confuses neighbours."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    scores = rng.normal(size=(count, classes))
    scores[np.arange(count), (label + rng.integers(0, 2, count)) % classes] += 4
    found = predictions.top_classes(scores, metrics.softmax(scores), label)
    wrong = np.flatnonzero(found["top"][:, 0] != label)[:16]
    return {
        "kind": np.array("classification"), "class": np.array(NAMES[:classes]), **found,
        "worst": wrong, "worst_image": IMAGES[: len(wrong)],
    }  # fmt: skip


def retrieval():
    arrays = {"kind": np.array("retrieval")}
    words = np.array([f"words {i}" for i in range(30)]).reshape(6, 5)
    images = IMAGES[:30].reshape(6, 5)
    for direction, query, top in (
        ("image_to_text", images, words), ("text_to_image", words, images),
    ):  # fmt: skip
        columns = {
            "query": query[:, 0], "correct": top[:, 0], "query_rank": np.arange(1, 7) ** 2,
            "top": top, "top_score": np.full((6, 5), 0.25), "top_correct": np.eye(6, 5, dtype=bool),
            "rank": np.arange(20),
        }  # fmt: skip
        arrays |= {f"{direction}_{name}": values for name, values in columns.items()}
    return arrays


def detector():
    outcome = np.array(["matched"] * 3 + ["false"] * 5 + ["missed"] * 4)
    return {
        "kind": np.array("detection"), "class": np.array(NAMES), "outcome": outcome,
        "class_index": np.arange(12), "score": np.linspace(0.9, 0, 12),
        "recall": np.linspace(0, 1, 101), "precision_50": np.linspace(1, 0, 101),
        "shown": np.arange(3, 12), "shown_image": IMAGES[:9],
    }  # fmt: skip


def test_reliability_equals_scikit_learn():
    arrays = classifier()
    confidence, accuracy, counts, error = reliability(arrays)
    correct = arrays["top"][:, 0] == arrays["label"]
    expected = calibration_curve(correct, arrays["probability"][:, 0], n_bins=BINS)
    np.testing.assert_allclose(accuracy, expected[0])
    np.testing.assert_allclose(confidence, expected[1])
    assert counts.sum() == 400
    assert error == pytest.approx(np.sum(counts * np.abs(accuracy - confidence)) / 400)
    assert 0.05 < error < 0.95


def test_confusion_equals_scikit_learn():
    arrays = classifier()
    label, predicted = arrays["label"], arrays["top"][:, 0]
    everything = confusion_matrix(label, predicted, labels=np.arange(30))
    chosen = most_confused(label, predicted)
    assert len(chosen) in (MOST - 1, MOST)
    np.testing.assert_array_equal(
        matrix(label, predicted, chosen), everything[np.ix_(chosen, chosen)]
    )
    off = everything - np.diag(np.diag(everything))
    assert set(np.unravel_index(np.argmax(off), off.shape)) <= set(chosen)
    few = classifier(classes=6)
    assert most_confused(few["label"], few["top"][:, 0]).tolist() == list(range(6))


def test_captions_of_galleries():
    arrays = classifier()
    shot = mistakes(arrays, 10**9)[2]
    row = arrays["worst"][2]
    right, said = arrays["label"][row], arrays["top"][row, 0]
    assert shot.lines[0].startswith(f"class <{said}> {arrays['probability'][row, 0]:.2f}")
    assert shot.lines[1].startswith(f"is class <{right}> ")
    false, missed = (box_gallery(detector(), kind, 10**9) for kind in ("false", "missed"))
    assert [len(false), len(missed)] == [5, 4]
    assert [false[0].lines, missed[0].lines] == [("class <3> 0.65",), ("class <8>",)]
    third = queries(retrieval(), "image_to_text", 10**9)[2]
    assert (third.rank, third.correct) == (9, "words 10")
    assert [each[2] for each in third.top] == [False, False, True, False, False]
    assert fitting([3, 3, 3], 6) == 2
    assert len(queries(retrieval(), "text_to_image", len(IMAGES[0]) * 13)) == 2


@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.release)])
def test_runs_are_one_page_of_less_than_5_mb(tmp_path, count):
    runs = []
    for number in range(count):
        config = {"seed": 0, "optim": {"lr": number}}
        runs.append(write_run(tmp_path / f"run{number}", config, [{"step": 1, "loss": 1.0}]))
        for name, arrays in {
            "zeroshot/a": classifier(number), "zeroshot/b": classifier(number, classes=5),
            "retrieval/a": retrieval(), "detection/a": detector(),
            "mine/x": {"kind": np.array("of another package")},
        }.items():  # fmt: skip
            predictions.save(runs[-1], name, arrays)
    page = tmp_path / "report.html"
    report([str(run) for run in runs], html=str(page))
    assert page.stat().st_size < 5e6
    text = page.read_text()
    parser = Links()
    parser.feed(text)
    assert len(parser.found) > 60 * count / 2
    assert all(link.startswith("data:image/jpeg;base64,/9j/") for link in parser.found)
    body = text.partition("<body>")[2]
    assert re.findall(r"<h2>(\w+/\w+)</h2>", body) == [
        "detection/a", "retrieval/a", "zeroshot/a", "zeroshot/b",
    ]  # fmt: skip
    assert "is class &lt;" in body
    assert "<details open><summary>False boxes of run0" in body
    assert "<details><summary>False boxes of run1" in body
