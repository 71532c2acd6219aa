"""Evaluators of a config: exact on any devices, and helpful about wrong blocks."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from vit_jax.data.sources import open_source
from vit_jax.data.sources.base import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.classification import read_real_labels
from vit_jax.evaluators.multilabel import MultiLabel
from vit_jax.evaluators.suite import Suite
from vit_jax.evaluators.zeroshot import ZeroShot

PAIR = {"train": "digits:train[:300]", "test": "digits:test"}
EVALS = {
    "zeroshot": {"digits": {"data": "digits:test", "templates": ("{}", "the digit {}")}},
    "retrieval": {"digits": {"data": "digits:test[:50]", "at": (1, 3)}},
    "probe": {
        "digits": {**PAIR, "max_iterations": 30},
        "sweep": {**PAIR, "l2": "sweep", "max_iterations": 10},
    },
    "fewshot": {"digits": {**PAIR, "shots": (1, 5), "seeds": (0, 1)}},
    "knn": {"digits": {**PAIR, "k": (5,)}},
    "sgd_probe": {"digits": {**PAIR, "epochs": 3, "warmup_epochs": 1.0, "batch_size": 64}},
}


@pytest.fixture(scope="module")
def first_metrics():
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "batch_size"),
    [
        (8, 64),
        pytest.param(1, 50, marks=pytest.mark.release),
        pytest.param(2, 358, marks=pytest.mark.release),
    ],
)
def test_devices_and_batch_size_change_no_metric(make_embedder, first_metrics, devices, batch_size):
    """359 images are not a multiple of any of these batch sizes."""
    embedder, params = make_embedder(devices, batch_size)
    found = Suite(EVALS, embedder).run(params)
    assert found == first_metrics.setdefault("metrics", found)
    assert set(found) >= {
        "zeroshot/digits/top1",
        "zeroshot/digits/top5",
        "zeroshot/digits/mean_per_class_recall",
        "zeroshot/digits/ece",
        "retrieval/digits/image_to_text_recall@3",
        "retrieval/digits/text_to_image_mean_rank",
        "probe/digits/top1",
        "probe/sweep/lambda",
        "fewshot/digits/5shot_top1",
        "knn/digits/knn5_plain_top1",
    }
    assert found["probe/digits/top1"] > 0.5 > found["fewshot/digits/1shot_top1"] > 0.1


def test_zero_shot_equals_scikit_learn(make_embedder):
    embedder, params = make_embedder()
    source = open_source("digits:test")
    images = embedder.image_embeddings(params, source)
    classes = embedder.class_embeddings(params, source.class_names, ("{}", "the digit {}"))
    expected = top_k_accuracy_score(source.labels, images @ classes.T, k=5)
    found = Suite({"zeroshot": EVALS["zeroshot"]}, embedder).run(params)
    assert abs(found["zeroshot/digits/top5"] - expected) < 1e-6


def test_metrics_are_the_same_with_a_cache(make_embedder, tmp_path):
    block = {"zeroshot": EVALS["zeroshot"]}
    embedder, params = make_embedder()
    expected = Suite(block, embedder).run(params)
    for _ in range(2):
        embedder, params = make_embedder(cache=tmp_path / "cache")
        assert Suite(block, embedder).run(params) == expected
        assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # images and classes


def test_only_present_classes_are_candidates(make_embedder):
    embedder, _ = make_embedder()
    evaluator = ZeroShot(ZeroShot.Config(data="emoji:heldout_names", classes="present"), embedder)
    source = open_source("emoji:heldout_names")
    names = [source.annotation(i)["name"] for i in range(len(source))]
    assert set(evaluator.class_names) == set(names)
    assert [evaluator.class_names[i] for i in evaluator.targets] == names


def test_optional_blocks_without_data_are_skipped(make_embedder, monkeypatch):
    from vit_jax.data.embedded import art, labelled

    monkeypatch.setattr(labelled, "FASHION_FOLDER", labelled.FASHION_FOLDER / "absent")
    monkeypatch.setattr(art, "why_no_noto", lambda: "no font")
    labelled.load.cache_clear()
    embedder, _ = make_embedder()
    evals = {
        "zeroshot": {
            "noto": {"data": "emoji:heldout_artist", "optional": True},
            "fashion": {"data": "fashion_mnist:test", "optional": True},
        }
    }
    suite = Suite(evals, embedder)
    assert suite.evaluators == {}
    assert "no font" in suite.skipped["zeroshot/noto"]
    assert "dataset-fashion-mnist" in suite.skipped["zeroshot/fashion"]
    with pytest.raises(UserError, match="dataset-fashion-mnist"):
        Suite({"zeroshot": {"fashion": {"data": "fashion_mnist:test"}}}, embedder)
    labelled.load.cache_clear()


class Constant:
    """An evaluator from outside the package."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        value: float
        names: tuple[str, ...] = ("constant",)

    def __init__(self, config, embedder):
        self._config = config

    def run(self, params):
        for name in self._config.names:
            yield name, self._config.value


def test_evaluators_by_dotted_path(make_embedder):
    embedder, params = make_embedder()
    path = f"{__name__}:Constant"
    suite = Suite({"mine": {"x": {"evaluator": path, "value": 1}}}, embedder)
    assert suite.run(params) == {"mine/x/constant": 1.0}
    block = {"evaluator": "zeroshot", "data": "digits:test[:10]"}
    assert set(Suite({"mine": {"x": block}}, embedder).evaluators) == {"mine/x"}
    with pytest.raises(UserError, match=r"config\.evals\.mine\.x.*value"):
        Suite({"mine": {"x": {"evaluator": path}}}, embedder)


class MultiLabelDigits(Source):
    """Digits with two labels each."""

    def __init__(self):
        self._source = open_source("digits:test")

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return {**self._source[i], **self.annotation(i)}

    def annotation(self, i):
        digit = int(self._source.labels[i])
        return {"labels": [str(digit), "even" if digit % 2 == 0 else "odd"], "key": f"{i}"}


def test_multilabel_equals_scikit_learn(make_embedder, monkeypatch):
    embedder, params = make_embedder()
    source = MultiLabelDigits()
    monkeypatch.setattr(embedder, "open_source", lambda spec: source)
    found = dict(MultiLabel(MultiLabel.Config(data="digits"), embedder).run(params))
    names = [*"0123456789", "even", "odd"]
    targets = np.array([[n in source.annotation(i)["labels"] for n in names] for i in range(40)])
    scores = embedder.image_embeddings(params, source) @ embedder.text_embeddings(params, names).T
    assert abs(found["map"] - average_precision_score(targets, scores)) < 1e-6
    with pytest.raises(UserError, match=r"'lables'.*did you mean 'labels'"):
        MultiLabel(MultiLabel.Config(data="digits", field="lables"), embedder)


def test_real_labels_are_assigned_by_file_names(tmp_path):
    class Files(Source):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return {"path": f"/x/n01440764/ILSVRC2012_val_0000000{3 - i}.JPEG"}

    (tmp_path / "real.json").write_text(json.dumps([[1], [4, 5], []]))
    assert read_real_labels(str(tmp_path / "real.json"), Files(), "x") == [set(), {4, 5}]
    with pytest.raises(UserError, match="assigned by ImageNet's file names"):
        read_real_labels(str(tmp_path / "real.json"), MultiLabelDigits(), "x")


@pytest.mark.parametrize(
    ("evaluator", "keys", "message"),
    [
        ("zeroshot", {"templates": ("a digit",)}, "expected exactly one {}"),
        ("zeroshot", {"templates": ()}, "templates is empty"),
        ("zeroshot", {"templates": "a {}"}, "expected a list of templates"),
        ("zeroshot", {"templates": "clip_imagnet"}, "did you mean 'clip_imagenet'"),
        ("zeroshot", {"class_names": "cifar"}, "unknown list of class names"),
        ("zeroshot", {"class_names": ("a", "b")}, "has 2 names, the data has 10 classes"),
        ("zeroshot", {"class_names": [*"012345678", " "]}, "classes without a name: 9"),
        ("zeroshot", {"classes": "some"}, "unknown classes 'some'"),
        ("zeroshot", {"templtes": ("{}",)}, r"did you mean .*templates.*keys of .*class_names"),
        ("zeroshot", {"captions": "all"}, "does not apply .* key of retrieval"),
        ("zeroshot", {"templates": 3}, "expected str | tuple"),
        ("zero_shot", {}, "did you mean 'zeroshot'"),
        ("retrieval", {"at": (0,)}, "1 or more"),
        ("retrieval", {"captions": "al"}, "did you mean 'all'"),
        ("classification", {"real_labels": "absent.json"}, "no file of ReaL labels"),
        ("classification", {"data": "emoji:heldout_nams"}, "did you mean 'heldout_names'"),
        ("validation_loss", {}, "needs the objective of a run"),
    ],
)
def test_wrong_blocks(make_embedder, evaluator, keys, message):
    with pytest.raises(UserError, match=message) as error:
        Suite({evaluator: {"x": {"data": "digits:test", **keys}}}, make_embedder()[0])
    assert f"config.evals.{evaluator}.x" in str(error.value)


@pytest.mark.parametrize(
    ("evaluator", "keys", "message"),
    [
        ("probe", {"train": "digits:train[:5]"}, r"without an example in digits:train\[:5\]"),
        ("probe", {"test": "emoji:heldout_names"}, "different classes"),
        ("probe", {"l2": "best"}, "expected a number or 'sweep'"),
        ("probe", {"l2": -1.0}, "expected 0 or more"),
        ("probe", {"validation": "digits:test"}, "applies to l2='sweep'"),
        ("knn", {"k": (5000,)}, "numbers from 1 to"),
        ("fewshot", {"shots": (0,)}, "shots 1 or more"),
        ("sgd_probe", {"epochs": 5}, "a shorter warm-up"),
        ("probe", {"trian": "digits:train"}, r"did you mean .*\.train"),
    ],
)
def test_wrong_blocks_with_training_data(make_embedder, evaluator, keys, message):
    block = {"train": "digits:train", "test": "digits:test", **keys}
    with pytest.raises(UserError, match=message):
        Suite({evaluator: {"x": block}}, make_embedder()[0])


def test_a_block_needs_a_name(make_embedder):
    with pytest.raises(UserError, match=r"as config\.evals\.zeroshot\.data\.KEY = VALUE"):
        Suite({"zeroshot": {"data": "digits:test"}}, make_embedder()[0])
