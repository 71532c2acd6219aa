"""Stored predictions against NumPy and against the metrics of the same evaluation."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from box_reader import NAMES, make_reader
from PIL import Image
from scipy.special import softmax
from test_detection import Scenes, matches, random_scenes

from tests import helpers
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.evaluators import predictions
from vit_jax.evaluators.drawing import draw_part
from vit_jax.evaluators.outcomes import outcomes
from vit_jax.evaluators.suite import Suite
from vit_jax.experiment import build

EVALS = {
    "zeroshot": {"digits": {"data": "digits:test[:100]"}},
    "retrieval": {"digits": {"data": "digits:test[:30]", "equal_captions": "apart"}},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Arrays and metrics of the fresh tiny CLIP, by evaluation."""
    folder = tmp_path_factory.mktemp("stored")
    experiment = build(helpers.tiny_clip(), workdir=folder / "run")
    suite = Suite(EVALS, experiment.embedder())
    found = suite.run(jax.jit(experiment.model.init)(jax.random.key(0)))
    suite.save_predictions(folder, limit=0)
    assert not list(folder.iterdir())
    suite.save_predictions(folder, limit=1000)
    return predictions.load_all(folder), found


def test_classes_and_the_worst_mistakes(stored):
    arrays, found = stored[0]["zeroshot/digits"], stored[1]
    source = open_source("digits:test[:100]")
    np.testing.assert_array_equal(arrays["label"], source.labels)
    assert arrays["class"].tolist() == source.class_names
    in_five = (arrays["top"] == arrays["label"][:, None]).any(axis=1)
    assert in_five.mean() == pytest.approx(found["zeroshot/digits/top5"], abs=1e-6)
    assert (np.diff(arrays["probability"], axis=1) <= 1e-6).all()
    wrong = np.flatnonzero(arrays["top"][:, 0] != arrays["label"])
    confidence = arrays["probability"][:, 0]
    assert set(arrays["worst"]) <= set(wrong)
    assert confidence[arrays["worst"]].min() >= np.sort(confidence[wrong])[-predictions.SHOWN]
    assert len(arrays["worst_image"]) == len(arrays["worst"]) == predictions.SHOWN
    with Image.open(io.BytesIO(arrays["worst_image"][0])) as image:
        shown = np.asarray(image.convert("L"), np.float64)
    original = source[int(arrays["row"][arrays["worst"][0]])]["image"].mean(axis=-1)
    assert np.abs(shown - original).mean() < 8  # JPEG


def test_top_classes_equal_numpy():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 7)), rng.integers(0, 7, 50)
    scores[:5, :] = 0.5  # equal scores: the first class is predicted
    found = predictions.top_classes(scores, softmax(scores, axis=1), labels)
    assert found["top"].shape == (50, 5)
    np.testing.assert_array_equal(found["top"][:5, 0], 0)
    np.testing.assert_array_equal(found["top"][5:], np.argsort(-scores, axis=1)[5:, :5])
    expected = np.sort(softmax(scores, axis=1))[:, ::-1][5:, :5]
    np.testing.assert_allclose(found["probability"][5:], expected, rtol=1e-6)


def test_retrieval(stored):
    arrays, found = stored[0]["retrieval/digits"], stored[1]
    for direction in ("image_to_text", "text_to_image"):
        column = {name: arrays[f"{direction}_{name}"] for name in ("rank", "top_correct")}
        mean = found[f"retrieval/digits/{direction}_mean_rank"]
        assert np.mean(column["rank"]) == pytest.approx(mean, abs=1e-6)
        ranks = arrays[f"{direction}_query_rank"]
        assert (np.diff(ranks) >= 0).all()
        assert (ranks[0], ranks[-1]) == (column["rank"].min(), column["rank"].max())
        assert not column["top_correct"][ranks > 30].any()
    assert arrays["image_to_text_top"].shape == (6, 5)
    assert arrays["image_to_text_top"].dtype.kind == "U"
    assert arrays["text_to_image_top"][0, 0][:2] == b"\xff\xd8"  # JPEG


def test_outcomes_of_boxes_by_hand():
    annotated, detected = random_scenes()
    found = outcomes(annotated, detected, 4, limit=1000)
    by_hand = []
    for image, boxes in zip(annotated, detected, strict=True):
        for label in range(3):
            by_hand += matches(image, boxes, label, 0.5, 0, 1e10, 1000)[0]
    counted = [(score, hit) for score, hit, in_crowd in by_hand if not in_crowd]
    seen = found["outcome"] != "missed"
    scores = found["score"][seen]
    hits = found["outcome"][seen] == "matched"
    assert 10 < hits.sum() < seen.sum() - 10
    expected = sorted(((np.float32(s), h) for s, h in counted), reverse=True)
    assert [*zip(scores, hits, strict=True)] == expected
    objects = sum(int((~image.crowd).sum()) for image in annotated)
    assert (~seen).sum() == objects - hits.sum()
    assert (found["iou"][seen][hits] >= 0.5).all()
    few = outcomes(annotated, detected, 4, limit=3)
    np.testing.assert_array_equal(few["score"][:3], scores[:3])


def test_boxes_of_a_detector():
    embedder = make_reader({"scenes": Scenes()})
    suite = Suite({"detection": {"x": {"data": "scenes"}}}, embedder)
    found = suite.run({"scale": jnp.asarray(1.0)})
    arrays = suite.evaluators["detection/x"].predicted(1000)
    for name, metric in (("precision", "AP"), ("precision_50", "AP50"), ("precision_75", "AP75")):
        assert np.mean(arrays[name]) == pytest.approx(found[f"detection/x/{metric}"], abs=1e-6)
    kinds = arrays["outcome"][arrays["shown"]].tolist()
    assert set(kinds) == {"false"}  # the scenes have a box near each object
    objects = sum(int((~example["crowd"]).sum()) for example in Scenes().examples)
    assert (arrays["outcome"] != "false").sum() == objects
    assert len(arrays["shown_image"]) == len(kinds) <= 2 * predictions.SHOWN
    assert {len(arrays[n]) for n in ("row", "class_index", "score", "iou", "box", "outcome")} == {
        len(arrays["row"])
    }
    assert arrays["class"].tolist() == NAMES


def test_a_box_is_drawn_onto_its_surroundings():
    grey = np.full((300, 400, 3), 90, np.uint8)
    cut = np.asarray(draw_part(grey, np.array([10, 100, 50, 180], np.float32)))
    assert cut.shape == (160, 90, 3)
    assert (cut[40, 10:51] != 90).any(axis=1).all()
    assert (cut[45:115, 15:45] == 90).all()


def test_a_damaged_file_is_named(tmp_path):
    predictions.save(tmp_path, "zeroshot/x", {"kind": np.array("classification")})
    path = tmp_path / "predictions" / "zeroshot" / "x" / "predictions.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"predictions\.npz cannot be read"):
        predictions.load_all(tmp_path)
