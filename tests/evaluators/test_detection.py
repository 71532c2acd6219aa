"""Average precision against a computation by hand, and the evaluator with a simple model."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from box_reader import NAMES, QUERIES, SIZE, ReaderConfig, corners, encode, make_reader
from flax import nnx
from PIL import Image
from scipy.special import expit

from vit_jax.data.sources.base import Source
from vit_jax.errors import UserError
from vit_jax.evaluators import average_precision as ap
from vit_jax.evaluators.suite import Suite
from vit_jax.inputs import ImageInputs

# --- Average precision ----------------------------------------------------------------------------


def iou_of(box, other, crowd):
    inner = np.prod(np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0))
    areas = [np.prod(b[2:] - b[:2]) for b in (box, other)]
    return inner / (areas[0] if crowd else sum(areas) - inner)


def matches(image, found, label, threshold, low, high, most):
    """Rows (score, is true, is ignored) of one image and class, and the number of objects."""
    objects = np.flatnonzero(image.classes == label)
    ignored = {
        i: bool(image.crowd[i]) or not low <= image.areas[i] <= high for i in objects.tolist()
    }
    candidates = np.flatnonzero(found.classes == label)
    candidates = candidates[np.argsort(-found.scores[candidates], kind="stable")][:most]
    rows, taken = [], set()
    for candidate in candidates:
        best, chosen = threshold, None
        for i in sorted(objects.tolist(), key=ignored.__getitem__):  # ignored objects last
            if i in taken and not image.crowd[i]:
                continue
            if chosen is not None and not ignored[chosen] and ignored[i]:
                break
            overlap = iou_of(found.boxes[candidate], image.boxes[i], image.crowd[i])
            if overlap >= best:
                best, chosen = overlap, i
        area = np.prod(found.boxes[candidate, 2:] - found.boxes[candidate, :2])
        skip = ignored[chosen] if chosen is not None else not low <= area <= high
        taken |= {chosen}
        rows.append((found.scores[candidate], chosen is not None, skip))
    return rows, sum(not v for v in ignored.values())


def precision_by_hand(annotated, detected, label, threshold, low=0.0, high=1e10, most=100):
    """Interpolated average precision and highest recall of one class; None without objects."""
    parts = [
        matches(a, d, label, threshold, low, high, most)
        for a, d in zip(annotated, detected, strict=True)
    ]
    count = sum(n for _, n in parts)
    if not count:
        return None
    rows = sorted(itertools.chain(*(r for r, _ in parts)), key=lambda r: -r[0])
    hits = np.array([true for _, true, skip in rows if not skip], bool)
    recall = np.cumsum(hits) / count
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    at = [
        max((p for p, r in zip(precision, recall, strict=True) if r >= wanted), default=0.0)
        for wanted in np.linspace(0, 1, 101)
    ]
    return np.mean(at), max(recall, default=0.0)


def random_scenes(count=12, seed=0, classes=3):
    """Objects of several sizes, with crowds, and detections near them or anywhere."""
    rng = np.random.default_rng(seed)
    annotated, detected = [], []
    for _ in range(count):
        n = int(rng.integers(0, 7))
        low, sides = rng.uniform(0, 200, (n, 2)), rng.choice([12, 50, 150], (n, 1))
        boxes = np.concatenate([low, low + sides * rng.uniform(0.5, 1.5, (n, 2))], axis=1)
        labels = rng.integers(0, classes, n)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * rng.uniform(0.5, 1, n)
        annotated.append(ap.Annotated(boxes, labels, rng.random(n) < 0.15, areas))
        copies = np.repeat(np.arange(n), 2)
        near = boxes[copies] + rng.normal(size=(2 * n, 4)) * (sides[copies] * 0.08)
        anywhere = rng.uniform(0, 200, (3, 4))
        anywhere[:, 2:] += anywhere[:, :2] + 1
        classes_of = np.concatenate([labels[copies], rng.integers(0, classes, 3)])
        detected.append(
            ap.Detected(np.concatenate([near, anywhere]), classes_of, rng.random(2 * n + 3))
        )
    return annotated, detected


@pytest.fixture(scope="module")
def scenes():
    return random_scenes()


def test_average_precision_by_hand(scenes):
    curves = ap.compute_curves(*scenes, 4)  # the last class does not occur
    limits = {"all": (0, 1e10), "small": (0, 32**2), "large": (96**2, 1e10)}
    for area, iou in (("all", None), ("all", 0.5), ("all", 0.75), ("small", None), ("large", 0.5)):
        thresholds = [iou] if iou else np.linspace(0.5, 0.95, 10)
        found = [precision_by_hand(*scenes, c, t, *limits[area]) for c in range(3)
                 for t in thresholds]  # fmt: skip
        expected = np.mean([pair[0] for pair in found if pair is not None])
        assert 0.05 < expected < 0.95
        np.testing.assert_allclose(ap.average_precision(curves, None, area, iou), expected)
        if iou is None:
            recall = np.mean([pair[1] for pair in found if pair is not None])
            np.testing.assert_allclose(ap.average_recall(curves, None, area), recall)


def test_some_classes_and_one_detection(scenes):
    curves = ap.compute_curves(*scenes, 4)
    pairs = [precision_by_hand(*scenes, c, 0.5) for c in (0, 2)]
    np.testing.assert_allclose(
        ap.average_precision(curves, [0, 2], iou=0.5), np.mean([pair[0] for pair in pairs])
    )
    pairs = [precision_by_hand(*scenes, 1, t, most=1) for t in np.linspace(0.5, 0.95, 10)]
    np.testing.assert_allclose(
        ap.average_recall(curves, [1], count=1), np.mean([pair[1] for pair in pairs])
    )
    assert ap.average_precision(curves, [3]) == ap.average_recall(curves, [3]) == -1


def test_images_that_are_annotated_for_some_classes():
    """Detections of other classes are left out, and those of incomplete classes ignored."""
    box, other = np.array([[0.0, 0, 10, 10]]), np.array([[50.0, 50, 60, 60]])

    def one(boxes, label, **fields):
        n = len(boxes)
        return ap.Annotated(boxes, np.full(n, label), np.zeros(n, bool), np.full(n, 100.0),
                            **{"absent": (), **fields})  # fmt: skip

    annotated = [
        one(box, 0),
        one(box[:0], 0),  # class 0 is unknown
        one(box[:0], 0, absent=(0,)),
        one(box, 0, not_exhaustive=(0,)),
    ]
    found = ap.Detected(np.concatenate([other, box]), np.zeros(2, int), np.array([0.9, 0.8]))
    federated = ap.compute_curves(annotated, [found] * 4, 1, counts=[300], federated=True)
    # By score: wrong in images 0 and 2 (twice), right in 0 and 3.
    scores = [(0.9, False)] * 2 + [(0.8, True), (0.8, False), (0.8, True)]
    precision = np.cumsum([hit for _, hit in scores]) / np.arange(1, 6)
    expected = (max(precision[2:]) * 51 + precision[4] * 50) / 101
    np.testing.assert_allclose(ap.average_precision(federated, iou=0.5), expected)


# --- The evaluator --------------------------------------------------------------------------------


class BlindConfig(ReaderConfig):
    def make(self, **execution):
        return Blind()


class Blind(nnx.Module):
    def layers_above(self):
        return {}


class Scenes(Source):
    """Images whose rows are detections near their objects, which are of the first four classes."""

    def __init__(self, count=13, **fields):
        self.class_names = NAMES
        rng = np.random.default_rng(0)
        self.examples = []
        for _ in range(count):
            n = int(rng.integers(0, 4))
            percent = rng.integers([20, 20, 15, 15], [80, 80, 40, 40], (QUERIES, 4))
            labels = rng.integers(0, 4, QUERIES)
            pixels = encode(percent, labels, rng.permutation(90)[:QUERIES] + 10)
            boxes = corners(percent[:n] + rng.integers(-3, 4, (n, 4)))
            example = {"image": pixels, "boxes": boxes, "names": [NAMES[i] for i in labels[:n]]}
            self.examples.append({**example, "crowd": np.zeros(n, bool), **fields})

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def expected_curves(source, asked=None, **options):
    """Curves of the pixels' detections for some classes of each image."""
    annotated, detected = [], []
    for row, example in enumerate(source.examples):
        pixels, boxes = example["image"].astype(np.float64), example["boxes"]
        classes = np.arange(len(NAMES)) if asked is None else np.array(asked[row], int)
        label = pixels[:, 4, 0].astype(int)
        scores = expit(np.where(label[:, None] == classes, pixels[:, 4, 2:] / 25, 0) - 2)
        query, place = np.divmod(np.arange(scores.size), max(len(classes), 1))
        found = corners(pixels[:, :4, 0])[query], classes[place], scores.ravel()
        detected.append(ap.Detected(*found))
        labels = np.array([NAMES.index(name) for name in example["names"]], int)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        annotated.append(ap.Annotated(boxes, labels, example["crowd"], areas))
    return ap.compute_curves(annotated, detected, len(NAMES), **options)


LVIS_FIELDS = {
    "negatives": ["eel"],
    "not_exhaustive": [],
    "frequencies": ["f", "f", "r", "r", "c"],
}


class Unlabelled(Scenes):
    def __init__(self):
        super().__init__(1)
        self.class_names = None


class WithoutBoxes(Scenes):
    def __init__(self):
        super().__init__(1)
        self.examples = [{"image": self.examples[0]["image"], "label": 0}]


@pytest.fixture(scope="module")
def evaluate():
    """Returns a function that evaluates the reader on a source with keys of the evaluator."""
    sources = {
        "scenes": Scenes(),
        "lvis": Scenes(**LVIS_FIELDS),
        "unlabelled": Unlabelled(),
        "without boxes": WithoutBoxes(),
    }

    def run(data="scenes", scale=1.0, devices=8, config=None, inputs=None, **keys):
        embedder = make_reader(sources, devices=devices, config=config, inputs=inputs)
        suite = Suite({"detection": {"x": {"data": data, **keys}}}, embedder)
        found = suite.run({"scale": jnp.asarray(scale)})
        return {name.removeprefix("detection/x/"): value for name, value in found.items()}

    return run


def test_all_classes_on_any_number_of_devices(evaluate):
    """Of 13 images in batches of 4, on devices that do not divide them."""
    found = evaluate(held_out=("cat", "dog"), templates=("{}", "a {}"))
    curves = expected_curves(Scenes())
    assert list(found) == [
        "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
        "AR@1", "AR@10", "AR@100", "AR_small", "AR_medium", "AR_large",
        "AP_held_out", "AP50_held_out", "AP_seen", "AP50_seen",
    ]  # fmt: skip
    assert 0.1 < found["AP"] < found["AP50"] < 1
    assert found["AP50"] == pytest.approx(ap.average_precision(curves, iou=0.5), abs=1e-6)
    assert found["AR@10"] == pytest.approx(ap.average_recall(curves, count=10), abs=1e-6)
    assert found["AP_small"] == found["AP"]
    assert found["AP_large"] == -1
    expected = ap.average_precision(curves, [2, 3])
    assert found["AP_held_out"] == pytest.approx(expected, abs=1e-6)
    assert found["AP_seen"] == pytest.approx(ap.average_precision(curves, [0, 1, 4]), abs=1e-6)
    keys = [name for name in found if not name.endswith(("held_out", "seen"))]
    assert evaluate(devices=1) == {name: found[name] for name in keys}


def test_drawings(evaluate, tmp_path):
    """Of the first images, with the names of the prompts."""
    evaluate(draw=str(tmp_path / "drawn"), draw_images=2, draw_threshold=0.6)
    files = sorted((tmp_path / "drawn").iterdir())
    assert [file.name for file in files] == ["000000.png", "000001.png"]
    with Image.open(files[0]) as drawing:
        assert drawing.size == (5 * 64, 8 * 64)


def test_classes_of_each_image_and_some_others(evaluate):
    present = [[NAMES.index(n) for n in set(e["names"])] for e in Scenes().examples]
    assert [] in present
    found = evaluate(negatives=0)
    expected = ap.average_precision(expected_curves(Scenes(), present))
    assert found["AP"] == pytest.approx(expected, abs=1e-6)
    everything = evaluate()
    assert evaluate(negatives=20) == everything
    assert everything["AP"] <= evaluate(negatives=2)["AP"] <= found["AP"]


def test_lvis(evaluate):
    found = evaluate("lvis", style="lvis", held_out="lvis_rare", max_detections=20)
    assert [name for name in found if name.startswith("AR@")] == ["AR@20"]
    assert found["AP_held_out"] == found["AP_rare"] > 0
    assert found["AP_common"] == -1
    present = [sorted({NAMES.index(n) for n in e["names"]} | {4}) for e in Scenes().examples]
    expected = ap.average_precision(expected_curves(Scenes(), present))
    assert found["AP"] == pytest.approx(expected, abs=0.02)  # 20 of 40 pairs are kept


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scale": np.nan}, r"boxes of image 0 are NaN or infinite"),
        ({"style": "coca"}, "did you mean 'coco'"),
        ({"style": "lvis"}, "no image of scenes has neg_category_ids"),
        ({"held_out": ("cat", "dgo")}, "did you mean 'dog'"),
        ({"held_out": "coco_71"}, "did you mean 'coco_17'"),
        ({"held_out": "lvis_rare"}, "scenes has no rare classes"),
        ({"negatives": -2}, "negatives=-2: expected a number of at least -1"),
        ({"data": "unlabelled"}, "unlabelled has no classes"),
        ({"data": "without boxes"}, "has no boxes: .* found the fields label"),
        ({"config": BlindConfig()}, "need a detector, as owlvit_.*; found BlindConfig"),
        ({"inputs": ImageInputs(size=SIZE)}, "boxes need inputs that show the whole image"),
    ],
)
def test_wrong_keys_and_sources(evaluate, keys, message):
    with pytest.raises(UserError, match=message):
        evaluate(**keys)


def test_a_missing_package(evaluate, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vit_jax\[detection\]'"):
        evaluate()
