"""`vit_jax.detect` against transformers' processors, and on what strangers hand in."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.weights.reference import DATA, split_reference
from vit_jax.data.sources import open_source
from vit_jax.detection import command
from vit_jax.detection.images import tile
from vit_jax.detection.runners import runner_of
from vit_jax.detection.selection import Boxes, select
from vit_jax.errors import UserError

# As in tests/fixtures/generators/make_detections.py.
SHAPES = [(37, 53), (91, 40)]
PROMPTS = {"cat": [5], "red car": [7, 8, 9], "two dogs": [11, 3]}


class Words:
    """A tokenizer of the small text tower: the words of `PROMPTS`, and others as one token."""

    context_length = 9

    def lengths(self, texts):
        return [len(PROMPTS.get(text, text.split())) + 1 for text in texts]

    def __call__(self, texts):
        rows = [[*PROMPTS.get(text, [2 + len(text) % 40]), 49] for text in texts]
        return np.array([row + [0] * (9 - len(row)) for row in rows], np.int32)


def open_detector(name, folder):
    """The small model of transformers in a folder as the library writes it."""
    path, _ = split_reference(f"transformers_{name}.safetensors", folder)
    path.rename(folder / "model.safetensors")
    shutil.copy(DATA / f"transformers_{name}.json", folder / "config.json")
    processor = {"owlvit": "OwlViTImageProcessor", "owlv2": "Owlv2ImageProcessor"}[name]
    settings = {"image_processor_type": processor, "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    detector = vit_jax.create_model(weights=folder)
    detector.__dict__["tokenize"] = Words()
    return detector


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    return {n: open_detector(n, tmp_path_factory.mktemp(n)) for n in ("owlvit", "owlv2")}


@pytest.fixture(scope="module")
def detector(detectors):
    return detectors["owlv2"]


@pytest.fixture(scope="module")
def images():
    fixture = np.load(DATA / "detection_inputs.npz")
    return [fixture["image_{}x{}".format(*shape)] for shape in SHAPES]


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    """Two images in sub-folders, a damaged one, and a file that is no image."""
    root = tmp_path_factory.mktemp("images")
    (root / "a").mkdir()
    (root / "b").mkdir()
    Image.fromarray(images[0]).save(root / "a" / "0.png")
    Image.fromarray(images[1]).save(root / "b" / "1.png")
    (root / "a" / "1.png").write_bytes((root / "a" / "0.png").read_bytes()[:100])
    (root / "notes.txt").write_text("")
    return root


@pytest.mark.parametrize("name", ["owlvit", "owlv2"])
def test_same_boxes_as_transformers(name, detectors, images):
    """Box for box, on images of odd sizes, by words and by a query image."""
    expected = np.load(DATA / "detections.npz")
    by_words = vit_jax.detect(detectors[name], images, list(PROMPTS), threshold=0.5)
    by_image = vit_jax.detect(detectors[name], images, query_image=images[0], nms_threshold=0.01)
    for kind, results in (("words", by_words), ("image", by_image)):
        for i, (found, shape) in enumerate(zip(results, SHAPES, strict=True)):
            theirs = {k: expected[f"{name}_{kind}_{i}_{k}"] for k in ("boxes", "scores")}
            order = np.argsort(-theirs["scores"], kind="stable")
            assert (found.height, found.width) == shape
            np.testing.assert_allclose(found.scores, theirs["scores"][order], atol=1e-5)
            np.testing.assert_allclose(found.boxes, theirs["boxes"][order], rtol=1e-4, atol=1e-3)
            if kind == "words":
                labels = expected[f"{name}_words_{i}_labels"][order]
                np.testing.assert_array_equal(found.labels, labels)
                assert found.names == [list(PROMPTS)[label] for label in labels]
    assert len(by_image[0].scores) < 16  # some were suppressed


def test_one_image_of_any_kind(detector, images, folder):
    [expected] = vit_jax.detect(detector, images[:1], ["cat", "red car"])
    for image in (images[0], Image.fromarray(images[0]), folder / "a" / "0.png"):
        found = vit_jax.detect(detector, image, ["cat", "red car"])
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-5, atol=1e-4)


def test_a_folder_in_batches(detector, images, folder, tmp_path, caplog):
    """Order, the last batch, damaged images, and pseudo-labels that the source `coco:` reads."""
    found = vit_jax.detect(
        detector, folder, list(PROMPTS), threshold=0.5, batch_size=2, output=tmp_path / "out.json"
    )
    assert [each.key for each in found] == ["a/0.png", "b/1.png"]
    assert "1 that are no images (as notes.txt)" in caplog.text
    assert "1 that cannot be read (as 1.png)" in caplog.text
    alone = vit_jax.detect(detector, images, list(PROMPTS), threshold=0.5)
    for each, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(each.boxes, other.boxes, rtol=1e-5, atol=1e-4)
    source = open_source(f"coco:{tmp_path}/out.json?images={folder}")
    assert source.class_names == list(PROMPTS)
    for example, each in zip(source, found, strict=True):
        clipped = each.boxes.clip(0, [each.width, each.height] * 2)
        inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
        np.testing.assert_allclose(example["boxes"], clipped[inside], atol=1e-3)
        assert example["names"] == [n for n, i in zip(each.names, inside, strict=True) if i]


def test_tiles(detector, images):
    """Boxes of a tile are those of the part alone, moved to its place."""
    image = images[1][:40]  # 40 x 40
    wide = np.concatenate([np.zeros_like(image), image], axis=1)
    arguments = {"names": list(PROMPTS), "threshold": 0.5, "batch_size": 1, "nms_threshold": 1.0}
    part = vit_jax.detect(detector, image, **arguments)
    found = vit_jax.detect(detector, wide, **arguments, tile_size=40, tile_overlap=0)
    assert (found.height, found.width) == (40, 80)
    for box, score in zip(part.boxes, part.scores, strict=True):
        near = np.abs(found.boxes - np.add(box, [40, 0, 40, 0])).max(axis=1)
        assert near.min() < 1e-3
        assert abs(found.scores[near.argmin()] - score) < 1e-5
    fewer = vit_jax.detect(
        detector, wide, list(PROMPTS), threshold=0.5, batch_size=1, tile_size=40, nms_threshold=0.1
    )
    assert len(fewer.scores) < len(found.scores)


@pytest.mark.parametrize(
    ("shape", "overlap"), [((100, 100), 0.25), ((99, 260), 0.0), ((30, 101), 0.5), ((40, 40), 0.9)]
)
def test_tiles_cover_the_image(shape, overlap):
    windows = tile(*shape, 40, overlap)
    assert windows[0] == (0, 0, *shape)
    covered = np.zeros(shape, bool)
    for top, left, height, width in windows[1:]:
        assert (height, width) == (min(40, shape[0]), min(40, shape[1]))
        covered[top : top + height, left : left + width] = True
    assert covered.all() or windows[1:] == []
    columns = sorted({left for _, left, _, _ in windows[1:]})
    assert all(b - a <= 40 * (1 - overlap) + 1 for a, b in itertools.pairwise(columns))


def test_prompts_are_averaged_and_kept(detector, images, monkeypatch):
    """The embedding is the normalised mean; a second call does not compute it again."""
    templates, names = ("{}", "photo of a {}", "many {}"), ["cow", "fish"]
    first = vit_jax.detect(detector, images[0], names, threshold=0.0, templates=templates)
    prompts = [t.format(name) for name in names for t in templates]
    mean = np.asarray(detector.apply("embed_queries", Words()([*prompts, "", ""])))[:6]
    mean = mean.reshape(2, 3, -1).mean(axis=1)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    monkeypatch.setattr(Words, "__call__", lambda self, texts: pytest.fail("tokenized again"))
    found = runner_of(detector).embed_classes(detector, names, templates)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    swapped = vit_jax.detect(detector, images[0], names[::-1], threshold=0.0, templates=templates)
    np.testing.assert_array_equal(swapped.boxes, first.boxes)
    np.testing.assert_array_equal(swapped.labels, 1 - first.labels)


def test_equal_names_count_once(detector, images):
    found = vit_jax.detect(detector, images[0], ["cat", "cat", "red car"], threshold=0.0)
    expected = vit_jax.detect(detector, images[0], ["cat", "red car"], threshold=0.0)
    assert found.names == expected.names
    np.testing.assert_array_equal(found.labels, expected.labels * 2)


def test_suppression_by_class():
    """Boxes of different classes do not suppress each other; scores below the threshold go."""
    box = [0.0, 0.0, 10.0, 10.0]
    boxes = np.array([box, box, box, [20, 20, 30, 30]], np.float32)
    found = Boxes(boxes, np.array([0.5, 0.9, 0.6, 0.1], "f4"), np.array([0, 0, 1, 0], "i4"))
    kept = select(found, 0.2, 0.5)
    np.testing.assert_array_equal(kept.scores, np.array([0.9, 0.6], "f4"))
    np.testing.assert_array_equal(kept.labels, [0, 1])
    assert len(select(found, 0.95, 0.5).scores) == 0


ERRORS = [
    ({"names": []}, "names is empty: expected at least one name"),
    ({"names": "cat"}, r"names='cat': expected a list of names, as \['cat'\]"),
    ({"names": ["cat", " "]}, "name 1 is ' ': expected a word or a phrase"),
    ({"names": ["a b c d e f g h i"]}, "'a b c d e f g h i' has 10 tokens: expected at most 9"),
    ({"names": ["cat"], "query_image": "x.png"}, "expected names or query_image; found both"),
    ({"names": ["cat"], "threshold": 1.5}, "threshold=1.5: expected a fraction from 0 to 1"),
    ({"names": ["cat"], "batch_size": 0}, "batch_size=0: expected 1 or more"),
    ({"names": ["cat"], "tile_size": -1}, "tile_size=-1, .*: expected a side in pixels"),
    ({"names": ["cat"], "templates": ("a",)}, "expected exactly one {}"),
    ({"names": ["cat"], "text_threshold": 0.2}, "for models that read captions, .*; found owl"),
    ({"names": ["cat"], "output": "x.json"}, "expected paths, found arrays"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_wrong_arguments(arguments, message, detector, images):
    with pytest.raises(UserError, match=message):
        vit_jax.detect(detector, images[0], **arguments)


def test_wrong_models_and_images(detector, folder, tmp_path):
    with pytest.raises(UserError, match=r"expected a detector, .*; found str"):
        runner_of("owlv2")
    with pytest.raises(UserError, match="images is empty: expected at least one image"):
        vit_jax.detect(detector, [], ["cat"])
    with pytest.raises(UserError, match="expected a folder with images; found none"):
        vit_jax.detect(detector, tmp_path, ["cat"])
    with pytest.raises(UserError, match=r"cannot read the image .*1.png"):
        vit_jax.detect(detector, [folder / "a" / "1.png"], ["cat"])
    with pytest.raises(UserError, match="owl models are called with images and tokens"):
        detector(np.zeros((1, 16, 16, 3), np.float32))


def test_the_command_prints_and_draws(detector, folder, tmp_path, capsys):
    image, names = str(folder / "a" / "0.png"), ["cat", "red car"]
    expected = vit_jax.detect(detector, image, names, threshold=0.5)
    command.run(detector, image, names, threshold=0.5, draw=str(tmp_path))
    lines = [line.split(maxsplit=5) for line in capsys.readouterr().out.splitlines()]
    assert [line[5] for line in lines] == expected.names != []
    found = np.float32([line[:5] for line in lines])
    np.testing.assert_allclose(found[:, 0], expected.scores, atol=1e-4)
    np.testing.assert_allclose(found[:, 1:], expected.boxes, atol=0.051)
    with Image.open(tmp_path / "0.png") as drawing:
        assert drawing.size == (53 * 10, 37 * 10)

    command.run(detector, str(folder), names, threshold=0.5, draw=str(tmp_path), as_json=True)
    rows = json.loads(capsys.readouterr().out)["detections"]
    assert {row["image"] for row in rows} == {"a/0.png", "b/1.png"}
    assert rows[0].keys() == {"image", "name", "score", "box"}
    assert (tmp_path / "b" / "1.png").is_file()
