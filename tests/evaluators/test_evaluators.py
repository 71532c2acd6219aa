"""Evaluators on a small model: padding, devices and restarts change nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.evaluators import Suite, cache, prompts
from vit_jax.evaluators.classification import read_real_labels
from vit_jax.parallel.mesh import make_mesh
from vit_jax.training import assembly


@pytest.fixture
def make_embedder(tiny_config, tmp_path):
    def make(devices=8, batch_size=64, cache=None, **changes):
        tiny_config.update_from_flattened_dict(changes)
        tiny_config.eval_batch_size = batch_size
        source = open_source("digits:train")
        tokenizer = assembly.build_tokenizer(tiny_config, source, tmp_path)
        model = assembly.build_model(tiny_config)
        params = model.init(jax.random.key(0))
        tiny_config.mesh.data = devices
        mesh = make_mesh(devices)
        return assembly.build_embedder(tiny_config, model, mesh, tokenizer, cache), params

    return make


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
def figures():
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "batch_size"), [(8, 64), (1, 50), (2, 358)])
def test_devices_and_batch_size_change_no_figure(make_embedder, figures, devices, batch_size):
    """359 images are no multiple of any of these batches: padding is masked."""
    embedder, params = make_embedder(devices, batch_size)
    found = Suite(EVALS, embedder).run(params)
    assert found == figures.setdefault("first", found)
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


def test_zeroshot_by_hand(make_embedder):
    """Templates are averaged after normalising, and normalised again."""
    embedder, params = make_embedder()
    source = open_source("digits:test")
    images = embedder.images(params, source)
    assert images.shape == (359, 16)
    classes = []
    for name in source.class_names:
        each = [embedder.texts(params, [t.format(name)])[0] for t in ("{}", "the digit {}")]
        mean = np.mean([v / np.linalg.norm(v) for v in each], axis=0)
        classes.append(mean / np.linalg.norm(mean))
    expected = top_k_accuracy_score(source.labels, images @ np.asarray(classes).T, k=5)
    found = Suite({"zeroshot": EVALS["zeroshot"]}, embedder).run(params)
    assert abs(found["zeroshot/digits/top5"] - expected) < 1e-6


@pytest.mark.parametrize("bias", [None, -3.0])
def test_probabilities_are_the_models_own(make_embedder, bias):
    """Softmax for CLIP; with a logit bias each pair's own."""
    changes = {} if bias is None else {"model.init_logit_bias": bias}
    embedder, params = make_embedder(**changes)
    cosines = np.array([[0.1, -0.2, 0.3]], np.float32)
    logits = np.exp(float(params["logit_scale"])) * cosines
    expected = np.exp(logits) / np.exp(logits).sum()
    if bias is not None:
        expected = 1 / (1 + np.exp(-(logits + bias)))
    np.testing.assert_allclose(embedder.probabilities(params, cosines), expected, rtol=1e-5)


def test_present_classes_alone_compete(make_embedder):
    embedder, _ = make_embedder()
    suite = Suite(
        {"zeroshot": {"x": {"data": "emoji:heldout_names", "classes": "present"}}}, embedder
    )
    source = open_source("emoji:heldout_names")
    names = {source[i]["name"] for i in range(len(source))}
    evaluator = suite.evaluators["zeroshot/x"]
    assert set(evaluator.class_names) == names
    assert [evaluator.class_names[i] for i in evaluator._labels] == [
        source[i]["name"] for i in range(len(source))
    ]


def test_missing_optional_data_are_told(make_embedder, monkeypatch):
    from vit_jax.data.embedded import art, labelled

    monkeypatch.setattr(labelled, "FASHION_FOLDER", labelled.FASHION_FOLDER / "absent")
    monkeypatch.setattr(art, "why_no_noto", lambda: "no font")
    noto = {"data": "emoji:heldout_artist", "optional": True}
    suite = Suite({"zeroshot": {"noto": noto}}, make_embedder()[0])
    assert suite.evaluators == {}
    assert "no font" in suite.skipped["zeroshot/noto"]
    labelled.load.cache_clear()
    block = {"data": "fashion_mnist:test", "optional": True}
    suite = Suite({"zeroshot": {"fashion": block}}, make_embedder()[0])
    assert suite.evaluators == {}
    assert "dataset-fashion-mnist" in suite.skipped["zeroshot/fashion"]
    with pytest.raises(UserError, match="dataset-fashion-mnist"):
        Suite({"zeroshot": {"fashion": {"data": "fashion_mnist:test"}}}, make_embedder()[0])
    labelled.load.cache_clear()


class Several:
    """Digits with two labels each."""

    class_names = None
    labels = None

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return {**self._source[i], **self.annotation(i)}

    def annotation(self, i):
        digit = int(self._source.labels[i])
        return {"labels": [str(digit), "even" if digit % 2 == 0 else "odd"], "key": f"{i}"}


def test_several_labels_a_picture(make_embedder):
    embedder, params = make_embedder()
    source = Several(open_source("digits:test"))
    embedder._sources["several", None] = source
    found = Suite({"multilabel": {"x": {"data": "several"}}}, embedder).run(params)
    names = [*"0123456789", "even", "odd"]
    right = np.array([[n in source.annotation(i)["labels"] for n in names] for i in range(40)])
    scores = embedder.images(params, source) @ embedder.texts(params, names).T
    assert abs(found["multilabel/x/map"] - average_precision_score(right, scores)) < 1e-6
    with pytest.raises(UserError, match=r"'lables'.*did you mean 'labels'"):
        Suite({"multilabel": {"x": {"data": "several", "field": "lables"}}}, embedder)


def test_real_labels_go_by_file_names(tmp_path):
    class Source:
        def __len__(self):
            return 2

        def annotation(self, i):
            return {"path": f"/x/n01440764/ILSVRC2012_val_0000000{3 - i}.JPEG"}

    (tmp_path / "real.json").write_text(json.dumps([[1], [4, 5], []]))
    assert read_real_labels(str(tmp_path / "real.json"), Source(), "x") == [set(), {4, 5}]
    with pytest.raises(UserError, match="go by ImageNet's file names"):
        read_real_labels(str(tmp_path / "real.json"), Several(open_source("digits:test")), "x")


def test_features_outlive_the_process_and_go_on(make_embedder, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    embedder, params = make_embedder(cache=folder)
    source = open_source("digits:test")
    expected = np.array(make_embedder()[0].images(params, source))

    # Stopped in the fourth batch of six.
    calls = []
    preprocess = embedder.preprocess

    def stop(image):
        calls.append(image)
        if len(calls) > 200:
            raise KeyboardInterrupt
        return preprocess(image)

    monkeypatch.setattr(embedder, "preprocess", stop)
    with pytest.raises(KeyboardInterrupt):
        embedder.images(params, source)
    calls.clear()

    again, _ = make_embedder(1, 100, cache=folder)  # on other devices, in other batches
    counted = again.preprocess
    monkeypatch.setattr(again, "preprocess", lambda image: calls.append(image) or counted(image))
    np.testing.assert_allclose(again.images(params, source), expected, atol=1e-6)
    assert len(calls) == 200  # rows 192 to 358 in batches of 100, padded

    calls.clear()
    third, _ = make_embedder(cache=folder)
    monkeypatch.setattr(third, "preprocess", lambda image: calls.append(image))
    np.testing.assert_allclose(third.images(params, source), expected, atol=1e-6)
    assert calls == []
    # Class embeddings too, and metrics are those without a cache.
    block = {"zeroshot": EVALS["zeroshot"]}
    embedder, params = make_embedder(cache=folder)
    assert Suite(block, embedder).run(params) == Suite(block, make_embedder()[0]).run(params)
    files = len(list(folder.glob("*.npy")))
    assert Suite(block, embedder).run(params) == Suite(block, make_embedder()[0]).run(params)
    assert files == len(list(folder.glob("*.npy"))) == 2


def test_other_weights_and_other_data_have_other_features(tiny_config, tmp_path):
    model = assembly.build_model(tiny_config)
    params = model.init(jax.random.key(0))
    name = cache.weights_fingerprint(params)
    sharded = jax.device_put(
        params, jax.sharding.NamedSharding(make_mesh(8), jax.sharding.PartitionSpec())
    )
    assert cache.weights_fingerprint(sharded) == name
    changed = jax.tree.map(jnp.copy, params)
    kernel = changed["image"]["patch_embed"]["kernel"]
    for index in ((0,) * kernel.ndim, (-1,) * kernel.ndim):
        flipped = kernel.at[index].add(1e-7)
        changed["image"]["patch_embed"]["kernel"] = flipped
        assert cache.weights_fingerprint(changed) != name
    # The same numbers in another order.
    changed["image"]["patch_embed"]["kernel"] = kernel[..., ::-1]
    assert cache.weights_fingerprint(changed) != name

    digits = open_source("digits:test")
    assert cache.source_fingerprint(digits) == cache.source_fingerprint(open_source("digits:test"))
    assert cache.source_fingerprint(digits) != cache.source_fingerprint(
        open_source("digits:test[:300]")
    )


def test_changed_pictures_of_a_folder_are_noticed(tmp_path):
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(70):
            Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / name / f"{i}.png")
    before = cache.source_fingerprint(open_source(f"folder:{tmp_path}"))
    Image.new("RGB", (4, 4), (200, 0, 0)).save(tmp_path / "cat" / "5.png")
    assert cache.source_fingerprint(open_source(f"folder:{tmp_path}")) != before


def test_damaged_weights_are_refused(make_embedder):
    embedder, params = make_embedder()
    params["image"]["patch_embed"]["kernel"] *= jnp.nan
    with pytest.raises(UserError, match=r"images of row 0 .* are NaN or infinite"):
        Suite({"zeroshot": EVALS["zeroshot"]}, embedder).run(params)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("zeroshot", {"templates": ("a digit",)}, "expected exactly one {}"),
        ("zeroshot", {"templates": ()}, "no prompt templates"),
        ("zeroshot", {"templates": "a {}"}, "one template is a list of one"),
        ("zeroshot", {"templates": "clip_imagnet"}, "did you mean 'clip_imagenet'"),
        ("zeroshot", {"class_names": "cifar"}, "unknown list of class names"),
        ("zeroshot", {"class_names": ("a", "b")}, "has 2 names, the data have 10 classes"),
        ("zeroshot", {"class_names": [*"012345678", " "]}, "classes without a name: 9"),
        ("zeroshot", {"classes": "some"}, "unknown classes 'some'"),
        ("retrieval", {"at": (0,)}, "1 or more"),
        ("retrieval", {"captions": "al"}, "did you mean 'all'"),
        ("classification", {"real_labels": "absent.json"}, "no file of ReaL labels"),
    ],
)
def test_wrong_blocks(make_embedder, kind, keys, message):
    with pytest.raises(UserError, match=message):
        Suite({kind: {"x": {"data": "digits:test", **keys}}}, make_embedder()[0])


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("probe", {"train": "digits:train[:5]"}, r"without an example in digits:train\[:5\]"),
        ("probe", {"test": "emoji:heldout_names"}, "different classes"),
        ("probe", {"l2": "best"}, "expected a number or 'sweep'"),
        ("probe", {"l2": -1.0}, "expected 0 or more"),
        ("probe", {"validation": "digits:test"}, "goes with l2='sweep'"),
        ("knn", {"k": (5000,)}, "numbers from 1 to"),
        ("fewshot", {"shots": (0,)}, "shots 1 or more"),
        ("sgd_probe", {"epochs": 5}, "a shorter warm-up"),
        ("probe", {"trian": "digits:train"}, "trian"),
    ],
)
def test_wrong_blocks_with_training_data(make_embedder, kind, keys, message):
    block = {"train": "digits:train", "test": "digits:test", **keys}
    with pytest.raises(UserError, match=message):
        Suite({kind: {"x": block}}, make_embedder()[0])


def test_prompts_by_name():
    assert len(prompts.templates("clip_imagenet")) == 80
    assert len(prompts.templates("clip_imagenet_7")) == 7
    assert prompts.templates("pets") == ("a photo of a {}, a type of pet.",)
    names = prompts.class_names("imagenet", [f"{i}" for i in range(1000)])
    assert (names[0], names[999]) == ("tench", "toilet paper")
    # ImageNet's identifiers in any order, and some of them.
    assert prompts.class_names("imagenet", ["n15075141", "n01440764"]) == ["toilet paper", "tench"]
    assert prompts.class_names("", ["great_white_shark"]) == ["great white shark"]


def test_class_names_of_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert prompts.class_names(str(tmp_path / "names.txt"), ["a", "b"]) == ["one", "two"]
