"""`vit_jax.detect` with a model that reads captions, against transformers' processor."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.fixtures.tokenizers.wordpiece import make_wordpiece
from tests.weights.reference import DATA, split_reference
from vit_jax.data.sources import open_source
from vit_jax.detection import command
from vit_jax.detection.runners import runner_of
from vit_jax.errors import UserError

# As in tests/fixtures/generators/make_detections.py.
SHAPES = [(37, 53), (91, 40)]
PHRASES = [["cat", "red car"], ["Two dogs", "man's ball", "tree"]]
SIZE = {"shortest_edge": 48, "longest_edge": 80}
BOXES, LENGTH, SIDE = 6, 12, 80


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The small model of transformers in a folder as the library writes it; 12 tokens."""
    folder = tmp_path_factory.mktemp("grounding_dino")
    path, _ = split_reference("transformers_grounding_dino.safetensors", folder)
    path.rename(folder / "model.safetensors")
    shutil.copy(DATA / "transformers_grounding_dino.json", folder / "config.json")
    settings = {"image_processor_type": "GroundingDinoImageProcessor", "size": SIZE}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    make_wordpiece().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    return vit_jax.create_model(weights=folder)


@pytest.fixture
def stand_in(detector, monkeypatch):
    """Replaces the network, whose activations are compared in tests/weights."""

    def use(network):
        monkeypatch.setattr(runner_of(detector), "_detect", network)

    return use


@pytest.fixture(scope="module")
def images():
    fixture = np.load(DATA / "detection_inputs.npz")
    return [fixture["image_{}x{}".format(*shape)] for shape in SHAPES]


def boxes_of(packed, sizes):
    """Boxes that depend on the image without its padding, relative to it, (B, 6, 4)."""
    pixels = packed.reshape(-1, SIDE, SIDE, 3)
    means = [x[:rows, :columns].mean() for x, (rows, columns) in zip(pixels, sizes, strict=True)]
    corner = np.float32(means)[:, None, None] / 512 + np.float32([[0, 0.1], [0.2, 0]] * 3)
    side = np.float32(np.arange(1, 7))[:, None] / 20
    return np.concatenate([corner, corner + side], axis=-1)


def probabilities_of(tokens):
    """Probabilities that depend on each token, (6, T)."""
    return np.float32(0.5 + 0.4 * np.sin(np.outer(np.arange(1, 7), tokens))) * (tokens > 0)


def network(params, packed, sizes, tokens):
    return boxes_of(packed, sizes), np.stack([probabilities_of(tokens)] * len(packed))


def detect(*arguments, **changes):
    return vit_jax.detect(*arguments, **{"threshold": 0.0, **changes})


@pytest.mark.parametrize(
    "real", [False, pytest.param(True, marks=pytest.mark.release)], ids=["stored", "computed"]
)
@pytest.mark.parametrize("caption", [0, 1])
def test_same_boxes_and_phrases_as_transformers(caption, real, detector, images, stand_in):
    """Of its stored outputs, and of the network here; the second caption fills the context."""
    with np.load(DATA / "grounded.npz") as file:
        expected = dict(file)
    for j, (image, shape) in enumerate(zip(images, SHAPES, strict=True)):
        prefix = f"{caption}_{j}_"
        theirs = {k.removeprefix(prefix): v for k, v in expected.items() if k.startswith(prefix)}

        def stored(params, packed, sizes, tokens, theirs=theirs):
            np.testing.assert_array_equal(tokens, np.pad(theirs["tokens"], (0, LENGTH))[:LENGTH])
            np.testing.assert_array_equal(sizes, [theirs["size"]])
            center, size = np.split(theirs["outputs"], 2, axis=-1)
            boxes = np.concatenate([center - size / 2, center + size / 2], axis=-1)
            return boxes[None], theirs["probabilities"][None]

        if not real:
            stand_in(stored)
        threshold, text_threshold = theirs["thresholds"].tolist()
        found = vit_jax.detect(
            detector, image, PHRASES[caption], threshold=threshold, text_threshold=text_threshold
        )
        order = np.argsort(-theirs["scores"])
        assert found.names == theirs["names"][order].tolist()
        assert len(set(found.labels)) == len(set(found.names)) == 3
        np.testing.assert_allclose(found.scores, theirs["scores"][order], rtol=2e-4)
        np.testing.assert_allclose(found.boxes, theirs["boxes"][order], rtol=1e-4, atol=1e-3)
        assert (found.height, found.width) == shape


def test_the_score_of_a_name_is_the_mean_over_its_tokens(detector, images, stand_in):
    """Names in upper case and in a template, of one and of several tokens; equal ones."""
    stand_in(network)
    names = ["Red Car", "cat", "Red Car"]
    found = detect(detector, images[0], names, templates=["the {}."])
    of_tokens = probabilities_of(detector.tokenize("the red car. the cat.")[0])
    # [CLS] the red car . the cat . [SEP]
    scores = np.stack([of_tokens[:, 2:4].mean(axis=1), of_tokens[:, 6]], axis=1)
    order = np.argsort(-scores.max(axis=1))
    np.testing.assert_allclose(found.scores, scores.max(axis=1)[order], rtol=1e-6)
    np.testing.assert_array_equal(found.labels, scores.argmax(axis=1)[order])
    assert found.names == [names[i] for i in found.labels]
    assert {*found.names} == {"Red Car", "cat"}


def test_names_that_exceed_the_context_are_divided(detector, images, stand_in):
    """Boxes of all captions are joined, and those of one place compete whatever their names."""
    stand_in(network)
    names = ["cat", "fire hydrant", "two small dogs", "man's ball", "tree house"]
    found = detect(detector, images[0], names, nms_threshold=1)
    assert len(found.boxes) == 2 * BOXES
    assert found.names == [names[i] for i in found.labels]
    parts = [detect(detector, images[0], part) for part in (names[:3], names[3:])]
    joined = np.concatenate([part.scores for part in parts])
    np.testing.assert_array_equal(found.scores, np.sort(joined)[::-1])
    assert sorted(found.names) == sorted(parts[0].names + parts[1].names)
    assert {*parts[1].names} == {*names[3:]}
    best = detect(detector, images[0], names)  # both captions find the same boxes
    by_box = np.max([part.scores[np.lexsort(part.boxes.T)] for part in parts], axis=0)
    np.testing.assert_array_equal(best.scores[np.lexsort(best.boxes.T)], by_box)
    fewer = detect(detector, images[0], names, nms_threshold=0.1)
    assert len(fewer.boxes) < len(best.boxes)
    assert detect(detector, images[0], names, threshold=0.95).names == []


def test_separators_in_a_name_are_spaces(detector, images, stand_in):
    stand_in(network)
    expected = detect(detector, images[0], ["red car", "cat"])
    found = detect(detector, images[0], ["red.car?", "cat."])
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert {*found.names} == {"red.car?", "cat."}


def test_folders_tiles_and_pseudo_labels(detector, images, stand_in, tmp_path, capsys):
    stand_in(network)
    folder, names, output = tmp_path / "images", ["cat", "red car"], tmp_path / "out.json"
    folder.mkdir()
    for name, image in zip("ab", images, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    (folder / "c.png").write_bytes(b"damaged")
    found = detect(detector, folder, names, batch_size=2, output=output)
    assert [each.key for each in found] == ["a.png", "b.png"]
    assert open_source(f"coco:{output}?images={folder}").class_names == names
    for each, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(each.boxes, detect(detector, image, names).boxes)
    phrases = detect(detector, folder, names, text_threshold=0.01, output=output)
    assert {name for each in phrases for name in each.names} == {"cat. red car. [SEP]"}
    source = open_source(f"coco:{output}?images={folder}")
    assert source.class_names == ["cat. red car. [SEP]"]

    tiled = detect(detector, images[1], names, tile_size=40, nms_threshold=1.0)
    part = detect(detector, images[1][:40], names)
    for box, score in zip(part.boxes, part.scores, strict=True):
        assert (np.abs(tiled.boxes - box).max(axis=1) + np.abs(tiled.scores - score)).min() < 1e-4

    command.run(detector, str(folder / "a.png"), names, threshold=0.0)
    assert len(capsys.readouterr().out.splitlines()) == BOXES


ERRORS = [
    ({"names": []}, "names is empty: expected at least one name"),
    ({"names": ["cat", ".?"]}, r"the name '\.\?' has no tokens: expected letters or digits"),
    (
        {"names": ["cat", "red " * 10]},
        r"the name 'red .*' has 13 tokens in a caption: expected at most 12",
    ),
    ({"templates": ["a {}", "the {}"]}, "names as one caption: expected one template; found 2"),
    ({"names": None, "query_image": "x.png"}, "look for words: expected names; found a query"),
    ({"text_threshold": 2}, "text_threshold=2: expected a fraction from 0 to 1"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_wrong_arguments(arguments, message, detector, images):
    with pytest.raises(UserError, match=message):
        vit_jax.detect(detector, images[0], **{"names": ["cat"], **arguments})
