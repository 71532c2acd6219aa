"""Accuracy of annotated boxes, with a model that reads classes off the pixels."""

import numpy as np
import pytest
from box_reader import NAMES, SIZE, WideInputs, make_reader

from tests.region_reader import RegionReaderConfig
from vit_jax.data.sources.base import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.suite import Suite


class Boxes(Source):
    """Images of random classes with up to seven boxes, of which the first of some is a crowd.

    The inputs show twice the width and height of an image.
    """

    def __init__(self, count=9):
        rng = np.random.default_rng(0)
        self.class_names = NAMES
        self.examples, self.right, self.classes = [], [], []
        for number in range(count):
            image = np.zeros((*SIZE, 3), np.uint8)
            image[..., 0] = rng.integers(0, 5, SIZE)
            n = number % 8
            centers = rng.uniform(0.5, np.array(SIZE[::-1]) - 0.5, (n, 2))
            read = [image[int(y / 2), int(x / 2), 0] for x, y in centers]
            labels = np.where(rng.random(n) < 0.6, read, rng.integers(0, 5, n)).astype(int)
            crowd = np.arange(n) < number % 3 - 1
            self.examples.append({
                "image": image,
                "boxes": np.concatenate([centers - 0.4, centers + 0.4], axis=1).astype("f4"),
                "names": [NAMES[i] for i in labels],
                "crowd": crowd,
            })  # fmt: skip
            self.right += list((labels == read)[~crowd])
            self.classes += list(labels[~crowd])

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def evaluate(sources, devices=8, config=None, data="boxes", **keys):
    reader = make_reader(sources, devices=devices, config=config or RegionReaderConfig(
        image_size=SIZE), inputs=WideInputs(size=SIZE, resize="squash"))  # fmt: skip
    suite = Suite({"region_classification": {"x": {"data": data, **keys}}}, reader)
    return suite.run({"scale": np.float32(4)})


@pytest.mark.parametrize(("devices", "max_boxes"), [(8, 3), (1, 100)])
def test_accuracy(devices, max_boxes):
    source = Boxes()
    right, labels = np.array(source.right), np.array(source.classes)
    found = evaluate({"boxes": source}, devices, max_boxes=max_boxes)
    assert 0.4 < right.mean() < 0.9
    expected = {
        "top1": right.mean(),
        "mean_per_class_recall": np.mean([right[labels == i].mean() for i in set(labels)]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[f"region_classification/x/{name}"], value, atol=1e-6)
    assert found["region_classification/x/top1"] <= found["region_classification/x/top5"]


class NoBoxes(Boxes):
    def __init__(self):
        super().__init__(1)


@pytest.mark.parametrize(
    ("source", "keys", "message"),
    [
        (Boxes, {"max_boxes": 0}, "max_boxes=0: expected 1 or more"),
        (NoBoxes, {}, "boxes has no box of a single object"),
    ],
)
def test_what_cannot_be_evaluated(source, keys, message):
    with pytest.raises(UserError, match=message):
        evaluate({"boxes": source()}, 1, **keys)


def test_a_model_that_finds_boxes_by_itself():
    suite = {"region_classification": {"x": {"data": "boxes"}}}
    with pytest.raises(UserError, match="as regionclip_rn50; found ReaderConfig"):
        Suite(suite, make_reader({"boxes": Boxes()}, devices=1))
