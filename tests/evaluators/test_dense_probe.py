"""Dense probes against scikit-learn, on features that are read off the pixels."""

import dataclasses
import types
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.neighbors import NearestNeighbors
from test_prompted import RegionsConfig

from vit_jax.data.sources.base import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.dense_features import label_fractions, patch_features
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.suite import Suite
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.parallel.mesh import make_mesh

SIZE, GRID, CLASSES = (12, 16), (6, 8), 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchesConfig:
    """Features of a patch of 2 x 2 px are the means of its channels."""

    image_size: tuple[int, int] = SIZE

    def make(self, **execution: Any) -> "Patches":
        return Patches()


class Patches(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def layers_above(self):
        return {}

    def features(self, images, layers):
        found = images.reshape(-1, 6, 2, 8, 2, 3).mean(axis=(2, 4)) * self.scale[...]
        return [found for _ in layers]


class Maps(Source):
    """Images whose color depends on the class of a pixel, with noise."""

    def __init__(self, seed, painted=False, count=5):
        rng = np.random.default_rng(seed)
        self.class_names = ["a", "b", "c"][: CLASSES - painted]
        self.examples = []
        for _ in range(count):
            labels = cv2.resize(rng.integers(0, CLASSES, (3, 4)).astype(np.uint8), SIZE[::-1],
                                interpolation=cv2.INTER_NEAREST).astype(np.int32)  # fmt: skip
            colors = np.array([[60, 90, 90], [120, 60, 120], [160, 160, 60]])[labels]
            image = (colors + rng.normal(size=colors.shape) * 60).clip(0, 255).astype(np.uint8)
            masks = [labels == i for i in range(CLASSES)]
            example = {"image": image, "segmentation": masks, "names": ["a", "b", "c"]}
            if painted:  # the last class is the background
                example |= {"segmentation": masks[:2], "names": ["a", "b"]}
            else:
                labels[:2, :3] = -1
                example["label_map"] = labels
            self.examples.append(example | {"labels": labels})

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    def patches(self):
        """Features and fractions of classes of all patches, float64."""
        features, fractions = [], []
        for example in self.examples:
            pixels = example["image"].reshape(6, 2, 8, 2, 3).mean(axis=(1, 3)).reshape(-1, 3)
            features.append(pixels / 255 * 2 - 1)
            hot = (example["labels"][..., None] == np.arange(CLASSES)).astype(float)
            fractions.append(
                hot.reshape(6, 2, 8, 2, CLASSES).mean(axis=(1, 3)).reshape(-1, CLASSES)
            )
        return np.concatenate(features), np.concatenate(fractions)


def evaluate(kind, train, test, devices=8, config=None, scale=1.0, **keys):
    embedder = Embedder(
        ModelDef(config or PatchesConfig()),
        inputs=ImageInputs(size=SIZE, crop_fraction=0.9, interpolation="bilinear"),
        mesh=make_mesh(devices=jax.devices()[:devices]), batch_size=4,
    )  # fmt: skip
    embedder._sources = {("train", None): train, ("test", None): test}
    keys = {"train": "train", "test": "test", "patches": 0, **keys}
    found = Suite({kind: {"x": keys}}, embedder).run({"scale": np.float32(scale)})
    return {name.removeprefix(f"{kind}/x/"): value for name, value in found.items()}


def metrics_by_hand(test, scores):
    """Scores of all patches -> mIoU and accuracy of the pixels."""
    labels, predicted = [], []
    for example, own in zip(test.examples, scores.reshape(-1, *GRID, CLASSES), strict=True):
        large = cv2.resize(np.float32(own), SIZE[::-1], interpolation=cv2.INTER_LINEAR)
        counted = example["labels"] >= 0
        labels.append(example["labels"][counted])
        predicted.append(large.argmax(axis=-1)[counted])
    labels, predicted = np.concatenate(labels), np.concatenate(predicted)
    return {
        "mIoU": jaccard_score(labels, predicted, average="macro"),
        "pixel_accuracy": np.mean(labels == predicted),
    }


def test_linear_segmentation():
    train, test = Maps(0), Maps(1)
    features, fractions = train.patches()
    known = fractions.sum(axis=1) > 0
    scale = features[known].std(axis=0) + 1e-6
    model = LogisticRegression(C=1 / (1e-2 * known.sum()), tol=1e-8, max_iter=1000)
    model.fit(features[known] / scale, fractions[known].argmax(axis=1))
    expected = metrics_by_hand(test, model.decision_function(test.patches()[0] / scale))
    assert 0.3 < expected["mIoU"] < 0.95
    found = evaluate("dense_probe", train, test, l2=1e-2)
    assert found == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize(("painted", "devices"), [(False, 8), (True, 1)])
def test_segmentation_by_neighbors(painted, devices):
    train, test = Maps(0, painted), Maps(1, painted)
    features, fractions = train.patches()
    known = fractions.sum(axis=1) > 0
    neighbors = NearestNeighbors(n_neighbors=5, metric="cosine").fit(features[known])
    distance, rows = neighbors.kneighbors(test.patches()[0])
    weights = np.exp((1 - distance) / 0.1)
    weights /= weights.sum(axis=1, keepdims=True)
    scores = np.einsum("qk,qkc->qc", weights, fractions[known][rows])
    found = evaluate("dense_knn", train, test, devices, k=5, temperature=0.1)
    assert found == pytest.approx(metrics_by_hand(test, scores), abs=3e-3)
    few = evaluate("dense_knn", train, test, 1, k=5, temperature=0.1, patches=50)
    assert few["mIoU"] != found["mIoU"]
    assert few["mIoU"] > 0.3


def test_fractions_of_labels():
    labels = np.array([[0, 0, 1, -1], [0, 1, 1, -1]])
    expected = [[[0.75, 0.25, 0], [0, 0.5, 0]]]
    np.testing.assert_allclose(label_fractions(labels, (1, 2), 3), expected)


def test_tokens_of_a_transformer_become_a_map():
    tokens = jnp.arange(2.0 * (2 + 6) * 3).reshape(2, 2 + 6, 3)
    encoder = types.SimpleNamespace(
        features=lambda images, layers: [tokens * layer for layer in layers],
        config=types.SimpleNamespace(num_prefix=2, patch_size=2),
    )
    images = jnp.zeros((2, 4, 6, 3))
    for model in (encoder, types.SimpleNamespace(image=encoder)):
        found = patch_features(model, images, 3)
        np.testing.assert_array_equal(found, 3 * tokens[:, 2:].reshape(2, 2, 3, 3))


class Unknown(Maps):
    """A source without masks."""

    def __init__(self):
        super().__init__(0)
        for example in self.examples:
            del example["label_map"], example["segmentation"]


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("dense_knn", {"k": 0}, "k=0, temperature=0.02: expected 1 or more neighbors"),
        ("dense_probe", {"l2": -1.0}, "l2=-1.0: expected 0 or more"),
        ("dense_probe", {"patches": -1}, "patches=-1: expected a number of patches, or 0"),
        ("dense_probe", {"scale": np.inf}, "features of image 0 are NaN or infinite"),
        (
            "dense_probe",
            {"config": RegionsConfig()},
            "encoder with features, as vit_b16; found Reg",
        ),
        ("dense_probe", {"other": Unknown()}, "test has no classes of pixels: expected a source"),
        ("dense_probe", {"other": Maps(1, painted=True)}, "train has 3 classes, test 3"),
    ],
)
def test_what_does_not_fit_is_refused(kind, keys, message):
    test = keys.pop("other", Maps(1))
    with pytest.raises(UserError, match=message):
        evaluate(kind, Maps(0), test, **keys)
