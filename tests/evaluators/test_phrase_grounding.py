"""Recall of phrases, with a model that reads boxes off the pixels."""

import jax.numpy as jnp
import numpy as np
import pytest
from box_reader import NAMES, QUERIES, SIZE, corners, encode, make_reader

from vit_jax.data.sources.base import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.suite import Suite


class Captions(Source):
    """Images of eight boxes of two classes, with phrases of one or two boxes each."""

    def __init__(self, count=9):
        rng = np.random.default_rng(0)
        self.examples = []
        for _ in range(count):
            percent = rng.integers([20, 20, 20, 20], [80, 80, 60, 60], (QUERIES, 4))
            labels, scores = rng.integers(0, 2, QUERIES), rng.permutation(90)[:QUERIES] + 10
            chosen = rng.choice(QUERIES, rng.integers(0, 4), replace=False)
            shifted = percent[chosen] + rng.integers(-6, 7, (len(chosen), 4))
            self.examples.append({
                "image": encode(percent, labels, scores),
                "boxes": corners(shifted),
                "names": [f"the {NAMES[labels[i]]}" for i in chosen],
                # Boxes of even queries are one phrase, the others have one each.
                "spans": [[[0 if i % 2 == 0 else int(i), 20]] for i in chosen],
            })  # fmt: skip

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def iou(box, other):
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    inner = np.prod(np.maximum(sides, 0))
    return inner / (sum(np.prod(b[2:] - b[:2]) for b in (box, other)) - inner)


def recall_by_hand(source, k, threshold):
    hits = []
    for example in source.examples:
        pixels = example["image"].astype(float)
        boxes = corners(pixels[:, :4, 0])
        keys = [(n, str(s)) for n, s in zip(example["names"], example["spans"], strict=True)]
        for phrase in set(keys):
            label = NAMES.index(phrase[0].split()[-1])
            logits = np.where(pixels[:, 4, 0] == label, pixels[:, 4, 2], 0)
            first = np.argsort(-logits, kind="stable")[:k]
            wanted = example["boxes"][[key == phrase for key in keys]]
            hits.append(any(iou(boxes[i], box) >= threshold for i in first for box in wanted))
    return np.mean(hits)


def evaluate(sources, data="captions", devices=8, **keys):
    suite = Suite({"phrase_grounding": {"x": {"data": data, **keys}}},
                  make_reader(sources, devices=devices))  # fmt: skip
    found = suite.run({"scale": jnp.ones(())})
    stored = suite.evaluators["phrase_grounding/x"].predicted(1000)
    assert stored["shot"].shape == stored["caption"].shape
    near = [float(caption.rpartition(" ")[2]) >= 0.7 for caption in stored["caption"][:, 0]]
    assert 0 < np.mean(near) < 1
    return {name.removeprefix("phrase_grounding/x/"): value for name, value in found.items()}


def test_recall():
    """Of 9 images in batches of 4 on eight devices; the last k is more than there are boxes."""
    source = Captions()
    found = evaluate({"captions": source}, at=(1, 3, 20), iou_threshold=0.7)
    expected = {f"recall@{k}": recall_by_hand(source, k, 0.7) for k in (1, 3, 20)}
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 < found["recall@1"] < found["recall@3"] < found["recall@20"] < 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"at": (0, 1)}, r"at=\(0, 1\): expected values of k, 1 or more"),
        ({"iou_threshold": 1.5}, "iou_threshold=1.5: expected a number above 0, at most 1"),
        ({"data": "empty"}, "empty has no phrase with a box"),
        ({"data": "labels"}, "labels has no phrases with boxes: .* found the fields label"),
    ],
)
def test_wrong_keys_and_sources(keys, message):
    empty, labels = Captions(0), Captions(1)
    labels.examples = [{"image": np.zeros((*SIZE, 3), np.uint8), "label": 0}]
    with pytest.raises(UserError, match=message):
        evaluate({"captions": Captions(1), "empty": empty, "labels": labels}, **keys)
