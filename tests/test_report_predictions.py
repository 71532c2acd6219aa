"""What runs predicted, on the page: against scikit-learn, and within 5 MB for ten runs."""

import json
import re
import shutil
import subprocess

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
from vit_jax.reporting.galleries import box_gallery, captioned, fitting, mistakes, queries
from vit_jax.reporting.reliability import BINS, reliability

CHROMIUM = shutil.which("chromium")
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


def segmenter():
    rows = [[(bytes(image), f"cat {i}") for image in IMAGES[:3]] for i in range(4)]
    return predictions.captioned("segmentation", rows)


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
    assert [shot.lines for shot in captioned(segmenter(), 10**9)[1]] == [("cat 1",)] * 3
    assert len(captioned(segmenter(), sum(map(len, IMAGES[:3])) * 2)) == 2
    assert fitting([3, 3, 3], 6) == 2
    assert len(queries(retrieval(), "text_to_image", len(IMAGES[0]) * 13)) == 2


def write_page(folder, count):
    """Writes the page of runs with stored predictions of every kind."""
    runs = []
    for number in range(count):
        config = {"seed": 0, "optim": {"lr": number}}
        runs.append(write_run(folder / f"run{number}", config, [{"step": 1, "loss": 1.0}]))
        for name, arrays in {
            "zeroshot/a": classifier(number), "zeroshot/b": classifier(number, classes=5),
            "retrieval/a": retrieval(), "detection/a": detector(),
            "text_segmentation/a": segmenter(),
            "mine/x": {"kind": np.array("of another package")},
        }.items():  # fmt: skip
            predictions.save(runs[-1], name, arrays)
    page = folder / "report.html"
    report([str(run) for run in runs], html=str(page))
    return page


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("two"), 2)


@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.release)])
def test_runs_are_one_page_of_less_than_5_mb(two_runs, tmp_path, count):
    page = two_runs if count == 2 else write_page(tmp_path, count)
    assert page.stat().st_size < 5e6
    text = page.read_text()
    parser = Links()
    parser.feed(text)
    assert len(parser.found) > 60 * count / 2
    assert all(link.startswith("data:image/jpeg;base64,/9j/") for link in parser.found)
    body = text.partition("<body>")[2]
    assert re.findall(r"<h2>(\w+/\w+)</h2>", body) == [
        "detection/a", "retrieval/a", "text_segmentation/a", "zeroshot/a", "zeroshot/b",
    ]  # fmt: skip
    assert "is class &lt;" in body
    assert "<details open><summary>False boxes of run0" in body
    assert "<details><summary>False boxes of run1" in body


# The page in a frame of the width of a phone; a window of Chromium is not narrower than 500 px.
FRAME = """<!doctype html>
<iframe id="frame" src="report.html" style="width: 360px; height: 800px; border: 0"></iframe>
<pre id="found"></pre>
<script>
  const look = () => {
    const page = frame.contentWindow, {document: inner, performance} = page;
    found.textContent = "found " + JSON.stringify({
      width: page.innerWidth,
      needed: inner.documentElement.scrollWidth,
      places: inner.querySelectorAll("[data-root-id]").length,
      plots: [...inner.querySelectorAll("[data-root-id]")].filter(x => x.childElementCount).length,
      loaded: performance.getEntriesByType("resource").map(each => each.name),
    });
  };
  onload = () => setTimeout(look, 2000);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
def test_the_page_in_a_browser_at_the_width_of_a_phone(two_runs, tmp_path):
    """No error in the console, nothing is loaded, and nothing is wider than the screen."""
    two_runs.with_name("frame.html").write_text(FRAME)
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
             "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom",
             f"--user-data-dir={tmp_path / 'profile'}")  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *flags, f"file://{two_runs.with_name('frame.html')}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = re.findall(r"CONSOLE:\d+\] (.*)", done.stderr)
    assert [line for line in said if not line.startswith('"[bokeh ')] == []
    found = json.loads(re.search(r"found (\{.*?\})</pre>", done.stdout)[1])
    assert found["plots"] == found["places"] > 5
    assert found["needed"] <= found["width"] == 360
    assert [name for name in found["loaded"] if not name.startswith("data:")] == []
