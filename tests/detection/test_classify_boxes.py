"""`vit_jax.classify_boxes` with a model that reads classes off the pixels."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.region_reader import NAMES, RegionReaderConfig, Words
from vit_jax.detection.runners import box_runner_of
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.spec import ModelSpec
from vit_jax.pretrained.model import PretrainedModel

ASKED = ["cat", "ant", "dog", "cat"]
# x0, y0, x1, y1 of an ant, a cat and a bee, which is not asked for.
BOXES = np.float32([[0, 0, 24, 16], [0, 32, 24, 48], [48, 0, 72, 16]])
SCORE = np.exp(4) / (np.exp(4) + 3)  # two other names and the background


@pytest.fixture(scope="module")
def model():
    architecture = RegionReaderConfig()
    spec = ModelSpec(architecture=architecture, inputs=ImageInputs(resize="squash"))
    definition = ModelDef(architecture)
    found = PretrainedModel(spec, definition, definition.init(jax.random.key(0)))
    found.__dict__["tokenize"] = Words()
    return found


@pytest.fixture(scope="module")
def image():
    """48 x 72 px: the upper left quarter shows ants, the lower left cats, the rest bees."""
    pixels = np.ones((48, 72, 3), np.uint8)
    pixels[:24, :36], pixels[24:, :36] = 0, 2
    return pixels


def test_an_image_with_boxes(model, image):
    found = vit_jax.classify_boxes(model, image, BOXES, ASKED)
    assert (found.height, found.width) == (48, 72)
    np.testing.assert_array_equal(found.boxes, BOXES)  # the bee has the lowest score
    assert found.names[:2] == ["ant", "cat"]
    np.testing.assert_array_equal(found.labels[:2], [1, 0])
    np.testing.assert_allclose(found.scores, [SCORE, SCORE, 1 / 4], rtol=1e-5)
    sure = vit_jax.classify_boxes(model, image, found, ASKED, threshold=0.5)
    np.testing.assert_array_equal(sure.boxes, BOXES[:2])
    twice = np.concatenate([BOXES, BOXES + 1])
    assert len(vit_jax.classify_boxes(model, image, twice, ASKED, nms_threshold=0.5).boxes) == 3


def test_more_boxes_than_are_classified_at_once(model, image, monkeypatch):
    monkeypatch.setattr("vit_jax.detection.regions._MOST", 2)
    several = [BOXES, np.zeros((0, 4)), BOXES[:1]]
    found = vit_jax.classify_boxes(model, [image] * 3, several, ASKED, batch_size=2)
    assert [len(each.boxes) for each in found] == [3, 0, 1]
    assert found[0].names[:2] == ["ant", "cat"]
    assert found[1].height == 48


def test_a_folder_with_boxes_of_a_file_or_of_a_detector(model, image, tmp_path, caplog):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(image).save(tmp_path / "images" / name)
    record = {"height": 48, "width": 72}
    content = {
        "images": [{"id": i, "file_name": f"{'abc'[i]}.png", **record} for i in (0, 1)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i, "image_id": 0, "category_id": 1, "bbox": [x, y, right - x, bottom - y]}
            for i, (x, y, right, bottom) in enumerate(BOXES.tolist())
        ],
    }
    file = tmp_path / "proposals.json"
    file.write_text(json.dumps(content))
    folder, output = tmp_path / "images", tmp_path / "out.json"
    found = vit_jax.classify_boxes(model, folder, file, ASKED, threshold=0.5, output=output)
    assert "left out 1 images without boxes (as c.png)" in caplog.text
    assert [(each.key, each.names) for each in found] == [("a.png", ["ant", "cat"]), ("b.png", [])]
    assert len(json.loads(output.read_text())["annotations"]) == 2

    moved = [dataclasses.replace(found[0], key="c.png")]
    [again] = vit_jax.classify_boxes(model, folder, moved, ASKED)
    assert (again.key, again.names) == ("c.png", ["ant", "cat"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"boxes": [[1, 2, 3]]},
            r"of image number 0: expected finite numbers \(n, 4\), .*\(1, 3\)",
        ),
        ({"boxes": BOXES * np.nan}, "expected finite numbers"),
        ({"images": [np.zeros((4, 4, 3), np.uint8)]}, "expected those of 1 images; found 3"),
        ({"names": []}, "names is empty: expected at least one name"),
        ({"threshold": -1}, "threshold=-1: expected a fraction from 0 to 1"),
        ({"output": "x.json"}, "expected paths, found arrays"),
    ],
)
def test_wrong_arguments(changes, message, model, image):
    arguments = {"model": model, "images": image, "boxes": BOXES, "names": NAMES, **changes}
    with pytest.raises(UserError, match=message):
        vit_jax.classify_boxes(**arguments)


def test_another_kind_of_model():
    with pytest.raises(UserError, match=r"classifies boxes, .*'regionclip_rn50'.*; found str"):
        box_runner_of("owlv2")


def test_boxes_of_other_images(model, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    other = vit_jax.classify_boxes(model, image, BOXES, NAMES)
    with pytest.raises(UserError, match=r"expected boxes of 'a.png' and other images; found"):
        vit_jax.classify_boxes(model, tmp_path, [dataclasses.replace(other, key="b.png")], NAMES)
