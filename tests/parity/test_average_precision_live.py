"""Average precision against pycocotools and LVIS's authors, on the same detections."""

import contextlib
import dataclasses
import io
import json

import cv2
import numpy as np
import pytest

from vit_jax.data.masks import encode_mask
from vit_jax.evaluators import average_precision as ap

pytestmark = pytest.mark.parity


def random_scenes(seed, images=300, classes=20):
    """Objects of all sizes, with crowds, and up to 150 detections per image.

    Scores are distinct: pycocotools leaves the order of equal scores to its sort.
    """
    rng = np.random.default_rng(seed)
    annotated, detected = [], []
    scores = rng.permutation(images * 150) / (images * 150)
    for image in range(images):
        n = int(rng.integers(0, 20))
        sides = np.exp(rng.uniform(np.log(4), np.log(300), (n, 2)))
        low = rng.uniform(0, 400, (n, 2))
        boxes = np.concatenate([low, low + sides], axis=1).astype(np.float32)
        labels, areas = rng.integers(0, classes, n), np.prod(sides, axis=1) * rng.uniform(0.4, 1, n)
        annotated.append(ap.Annotated(boxes, labels, rng.random(n) < 0.1, areas))
        copies = rng.integers(0, max(n, 1), 120) if n else np.zeros(0, int)
        near = boxes[copies] + rng.normal(size=(len(copies), 4)) * 0.1 * np.tile(sides[copies], 2)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 0.5)
        low = rng.uniform(0, 400, (30, 2))
        anywhere = np.concatenate([low, low + rng.uniform(1, 200, (30, 2))], axis=1)
        of_class = np.concatenate([labels[copies], rng.integers(0, classes, 30)])
        confused = rng.random(len(of_class)) < 0.2
        of_class = np.where(confused, rng.integers(0, classes, len(of_class)), of_class)
        found = np.concatenate([near, anywhere]).astype(np.float32)
        detected.append(ap.Detected(found, of_class, scores[image * 150 :][: len(found)]))
    return annotated, detected


def random_masks(seed):
    """Ellipses in boxes of an image of 100 x 80 px, with crowds; predictions are shifted."""
    rng = np.random.default_rng(seed)

    def mask(box):
        found = np.zeros((80, 100), np.uint8)
        (x, y), axes = np.split(box, 2)
        cv2.ellipse(found, (int(x), int(y)), tuple(axes.astype(int)), 0, 0, 360, 1, -1)
        return encode_mask(found > 0)

    annotated, detected = [], []
    scores = rng.permutation(60 * 30) / (60 * 30)
    for image in range(60):
        n = int(rng.integers(0, 8))
        shapes = np.concatenate([rng.uniform(10, 70, (n, 2)), rng.uniform(2, 30, (n, 2))], axis=1)
        labels, crowd = rng.integers(0, 3, n), rng.random(n) < 0.1
        copies = np.repeat(np.arange(n), 3)
        near = np.maximum(shapes[copies] + rng.normal(size=(3 * n, 4)) * 2, 1)
        areas = np.prod(shapes[:, 2:], axis=1) * np.pi
        masks = [mask(shape) for shape in shapes]
        annotated.append(ap.Annotated(shapes, labels, crowd, areas, masks=masks))
        own = scores[image * 30 :][: 3 * n]
        found = [mask(shape) for shape in near]
        detected.append(ap.Detected(near, labels[copies], own, masks=found))
    return annotated, detected


def stats_of_pycocotools(annotated, detected, classes, kind="bbox"):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ap._coco_json(annotated, classes)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(ap._coco_results(detected)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", [0, 1])
def test_coco(seed):
    annotated, detected = random_scenes(seed)
    judge = stats_of_pycocotools(annotated, detected, classes=21)  # one class does not occur
    curves = ap.compute_curves(annotated, detected, 21)
    np.testing.assert_allclose(curves.precision, judge.eval["precision"], rtol=1e-12)
    np.testing.assert_allclose(curves.recall, judge.eval["recall"], rtol=1e-12)
    found = [ap.average_precision(curves, iou=iou) for iou in (None, 0.5, 0.75)]
    found += [ap.average_precision(curves, area=area) for area in ap.AREAS[1:]]
    found += [ap.average_recall(curves, count=count) for count in (1, 10, 100)]
    found += [ap.average_recall(curves, area=area) for area in ap.AREAS[1:]]
    np.testing.assert_allclose(found, judge.stats, rtol=1e-12)
    print("AP, AP50, AP75, ...:", np.round(found, 4))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks():
    annotated, detected = random_masks(0)
    judge = stats_of_pycocotools(annotated, detected, 3, "segm")
    curves = ap.compute_curves(annotated, detected, 3)
    assert 0.1 < judge.stats[0] < 0.9
    np.testing.assert_allclose(curves.precision, judge.eval["precision"], rtol=1e-12)
    np.testing.assert_allclose(curves.recall, judge.eval["recall"], rtol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lvis(tmp_path, monkeypatch):
    """The package `lvis` has to be installed by hand: it brings another OpenCV."""
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)
    rng = np.random.default_rng(0)
    annotated, detected = random_scenes(2)
    for i, image in enumerate(annotated):
        missing = np.setdiff1d(np.arange(20), image.classes)
        absent, present = rng.choice(missing, 4, replace=False), np.unique(image.classes)
        incomplete = rng.choice(present, min(1, len(present)), replace=False)
        annotated[i] = dataclasses.replace(
            image,
            crowd=np.zeros_like(image.crowd),  # LVIS has none
            absent=tuple(absent.tolist()),
            not_exhaustive=tuple(incomplete.tolist()),
        )
    content = ap._coco_json(annotated, 20)
    for each in content["annotations"]:
        each["segmentation"] = []
    for each, letter in zip(content["categories"], "rcff" * 5, strict=True):
        each["frequency"] = letter
    (tmp_path / "truth.json").write_text(json.dumps(content))
    truth = lvis.LVIS(str(tmp_path / "truth.json"))
    results = lvis.LVISResults(truth, ap._coco_results(detected), max_dets=300)
    judge = lvis.LVISEval(truth, results, "bbox")
    judge.run()

    curves = ap.compute_curves(annotated, detected, 20, counts=[300], federated=True)
    rare = [i for i in range(20) if "rcff"[i % 4] == "r"]
    found = {
        "AP": ap.average_precision(curves),
        "AP50": ap.average_precision(curves, iou=0.5),
        "APs": ap.average_precision(curves, area="small"),
        "APl": ap.average_precision(curves, area="large"),
        "APr": ap.average_precision(curves, rare),
        "AR@300": ap.average_recall(curves),
    }
    print({name: (round(value, 4), round(judge.results[name], 4)) for name, value in found.items()})
    for name, value in found.items():
        np.testing.assert_allclose(value, judge.results[name], rtol=1e-9, err_msg=name)
