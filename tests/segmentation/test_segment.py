"""`vit_jax.segment` against transformers' SamProcessor, with a detector, and its errors."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.fixtures.tokenizers.wordpiece import make_wordpiece
from tests.weights.reference import DATA, relative_error, split_reference
from tests.weights.transformers_models import VIT
from vit_jax.detection.selection import Detections
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.models.sam.prompts import FOREGROUND, LOWER_RIGHT, NO_POINT, UPPER_LEFT
from vit_jax.pretrained.model import PretrainedModel
from vit_jax.segmentation import command
from vit_jax.segmentation import segment as segment_module
from vit_jax.segmentation.downscaling import downscale
from vit_jax.segmentation.prompts import make_prompts
from vit_jax.segmentation.results import Segmentation
from vit_jax.segmentation.runners import prompt_runner_of

SHAPES = ["28x20", "37x53", "17x23"]
SAME = "28x20"  # not resized: other sizes differ by the rounding of pixels to 8 bits
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_in_pixels_equal_transformers(shape, sam, reference):
    for kind in ("points", "boxes"):
        low, large = (reference[f"{shape}_{kind}_{name}"] for name in ("low", "large"))
        height, width = large.shape[2:]
        found = np.stack([
            sam.spec.inputs.restore(each, height, width) for each in low.reshape(-1, 28, 28)
        ])  # fmt: skip
        assert relative_error(found, large.reshape(found.shape)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_prompts_equal_transformers(shape, sam, reference):
    given = {name: reference[f"{shape}_{name}"] for name in ("image", "points", "labels", "boxes")}
    image, points, labels = (given[name] for name in ("image", "points", "labels"))
    runs = {
        "points": dict(points=points, labels=labels, multimask=True),
        "boxes": dict(boxes=given["boxes"]),
    }
    for kind, prompts in runs.items():
        found = vit_jax.segment(sam, image, **prompts)
        low, large = (reference[f"{shape}_{kind}_{name}"] for name in ("low", "large"))
        scores = reference[f"{shape}_{kind}_scores"]
        masks = low.shape[1]
        assert found.masks.shape == (2 * masks, *image.shape[:2])
        np.testing.assert_array_equal(found.labels, np.repeat([0, 1], masks))
        tolerance = 1e-5 if shape == SAME else 0.05
        assert relative_error(found.logits, low.reshape(found.logits.shape)) < tolerance
        assert relative_error(found.scores, scores.reshape(-1)) < tolerance
        expected = large.reshape(found.masks.shape)
        clear = np.abs(expected) > tolerance * np.abs(expected).max()
        np.testing.assert_array_equal(found.masks[clear], expected[clear] > 0)
        assert (found.height, found.width, found.key) == (*image.shape[:2], "")


def test_a_single_point_has_the_best_of_three_masks(sam, reference):
    image = reference[f"{SAME}_image"]
    every = vit_jax.segment(sam, image, points=[[5, 7], [9, 20]], multimask=True)
    best = np.array([0, 3]) + every.scores.reshape(2, 3).argmax(axis=1)
    found = vit_jax.segment(sam, image, points=[[5, 7], [9, 20]])
    np.testing.assert_array_equal(found.masks, every.masks[best])
    np.testing.assert_array_equal(found.scores, every.scores[best])
    np.testing.assert_array_equal(found.labels, [0, 1])
    assert found.names == ["", ""]


def test_batches_features_and_logits_are_used_again(sam, tmp_path):
    """500 prompts in batches; features once; logits of a result as prompts of the next."""
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    rng = np.random.default_rng(1)
    points = rng.uniform(0, (30, 24), (500, 2))
    seen = vit_jax.embed_image(sam, tmp_path / "a.png")
    assert (seen.height, seen.width, seen.key) == (24, 30, str(tmp_path / "a.png"))
    found = vit_jax.segment(sam, seen, points=points, multimask=False)
    assert found.masks.shape == (500, 24, 30)
    assert found.key == seen.key
    few = vit_jax.segment(sam, IMAGE, points=points[[3, 499]], multimask=False, batch_size=2)
    np.testing.assert_allclose(few.logits, found.logits[[3, 499]], rtol=1e-4, atol=1e-4)
    again = vit_jax.segment(sam, seen, points=points[:2], masks=found.logits[:2], batch_size=1)
    runner = prompt_runner_of(sam)
    prompts = make_prompts(points[:2], None, None, found.logits[:2], size=(24, 30),
                           inputs=sam.spec.inputs, mask_size=runner.mask_size)  # fmt: skip
    direct = sam.apply(
        "predict_masks", seen.features, prompts.points[None], prompts.labels[None],
        prompts.masks[None], multimask=False,
    )  # fmt: skip
    np.testing.assert_allclose(again.logits, direct["masks"][0, :, 0], rtol=1e-4, atol=1e-4)


def test_masks_alone(sam):
    mask = np.zeros((1, 24, 30), bool)
    mask[0, 5:20, 10:25] = True
    found = vit_jax.segment(sam, IMAGE, masks=mask)
    assert found.masks.shape == (1, 24, 30)
    logits = downscale(mask[0], sam.spec.inputs, (28, 28))
    again = vit_jax.segment(sam, IMAGE, masks=logits[None])
    np.testing.assert_array_equal(again.logits, found.logits)


def test_a_mask_as_a_prompt():
    """A mask of an image in the upper left corner of the input; fractions on its border."""
    inputs = ImageInputs(size=(32, 32), resize="longest", interpolation="bilinear")
    mask = np.zeros((32, 64), bool)
    mask[4:12, 8:18] = True
    found = downscale(mask, inputs, (16, 16))
    expected = np.full((16, 16), -10.0)
    expected[1:3, 2:4] = 10
    expected[1:3, 4] = 0
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_prompts_are_scaled_to_the_input():
    inputs = ImageInputs(size=(32, 32), resize="longest", interpolation="bilinear")
    found = make_prompts(
        [[[64, 0], [32, 16]]], [[1, 0]], [[0, 8, 64, 32]], None,
        size=(32, 64), inputs=inputs, mask_size=(16, 16),
    )  # fmt: skip
    np.testing.assert_allclose(found.points, [[(32, 0), (16, 8), (0, 4), (32, 16)]])
    np.testing.assert_array_equal(found.labels, [[1, 0, UPPER_LEFT, LOWER_RIGHT]])
    assert not found.ambiguous
    found = make_prompts([[4, 4]], None, None, None,
                         size=(32, 64), inputs=inputs, mask_size=(16, 16))  # fmt: skip
    np.testing.assert_array_equal(found.labels, [[FOREGROUND, NO_POINT]])
    assert found.ambiguous


def detections(key="", boxes=(), scores=(), names=()):
    return Detections(
        key, 24, 30, np.float32(boxes).reshape(-1, 4), np.float32(scores),
        np.arange(len(names), dtype=np.int32), list(names),
    )  # fmt: skip


def test_words_by_a_detector(sam, monkeypatch, tmp_path):
    """Boxes are clipped; one outside of the image and images without a match have no masks."""
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    Image.fromarray(IMAGE[:20]).save(tmp_path / "b.png")
    boxes = [(-3, 2, 12, 20), (30, 0, 40, 9), (5, 5, 28, 24)]
    found = [
        detections("a.png", boxes, (0.9, 0.8, 0.7), ("cat", "dog", "car")),
        detections("b.png"),
    ]
    calls = []

    def detect(detector, images, names, **options):
        calls.append((detector, names, options))
        return found if images == tmp_path else found[0]

    monkeypatch.setattr(segment_module, "detect", detect)
    detector = sam  # is not called
    names = ["cat", "dog", "car"]
    result = vit_jax.segment(sam, tmp_path, names, detector=detector, threshold=0.3)
    options = {"query_image": None, "threshold": 0.3, "templates": ("{}",)}
    assert calls == [(detector, names, options)]
    first, second = result
    assert (first.key, first.names, first.labels.tolist()) == ("a.png", ["cat", "car"], [0, 2])
    np.testing.assert_array_equal(first.scores, np.float32([0.9, 0.7]))
    by_boxes = vit_jax.segment(sam, IMAGE, boxes=[(0, 2, 12, 20), (5, 5, 28, 24)])
    np.testing.assert_array_equal(first.masks, by_boxes.masks)
    assert (second.key, second.names, second.masks.shape) == ("b.png", [], (0, 20, 30))
    assert second.boxes.shape == (0, 4)
    single = vit_jax.segment(sam, tmp_path / "a.png", names, detector=detector)
    np.testing.assert_array_equal(single.masks, first.masks)


@pytest.mark.release
def test_words_by_grounding_dino(sam, tmp_path):
    """The whole chain, with random weights: masks are those of the boxes that are found."""
    path, _ = split_reference("transformers_grounding_dino.safetensors", tmp_path)
    path.rename(tmp_path / "model.safetensors")
    shutil.copy(DATA / "transformers_grounding_dino.json", tmp_path / "config.json")
    size = {"shortest_edge": 24, "longest_edge": 40}
    settings = {"image_processor_type": "GroundingDinoImageProcessor", "size": size}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    make_wordpiece().save(str(tmp_path / "tokenizer.json"))
    detector = vit_jax.create_model(weights=tmp_path)
    names = ["cat", "red car"]
    boxes = vit_jax.detect(detector, IMAGE, names, threshold=0.0)
    found = vit_jax.segment(sam, IMAGE, names, detector=detector, threshold=0.0)
    clipped = boxes.boxes.clip(0, [30, 24, 30, 24])
    kept = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    assert kept.any()
    expected = vit_jax.segment(sam, IMAGE, boxes=clipped[kept])
    np.testing.assert_array_equal(found.masks, expected.masks)
    np.testing.assert_array_equal(found.scores, boxes.scores[kept])
    assert found.names == [name for name, each in zip(boxes.names, kept, strict=True) if each]


@pytest.mark.release
def test_sixty_megapixels(sam):
    """A mask of a large image is that of the small one, pixel by pixel repeated, except borders."""
    small = np.repeat(np.repeat(IMAGE[:20, :28], 5, 0), 5, 1)
    large = np.repeat(np.repeat(small, 65, 0), 65, 1)  # 6,500 x 9,100 px
    assert large.shape[0] * large.shape[1] > 59e6
    one, other = (vit_jax.segment(sam, x, points=[[x.shape[1] / 2, x.shape[0] / 3]])
                  for x in (small, large))  # fmt: skip
    assert other.masks.shape == (1, *large.shape[:2])
    assert (other.masks[0, 32::65, 32::65] == one.masks[0]).mean() > 0.98


def test_the_command_prints_writes_and_draws(sam, monkeypatch, tmp_path, capsys):
    """Masks and overlays of a folder, and of an image in JSON."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(IMAGE).save(folder / name)
    masks = np.zeros((2, 24, 30), bool)
    masks[0, 2:9, 3:13] = masks[1, 10:20, 4:24] = True
    scores, labels = np.float32([0.75, 0.5]), np.arange(2, dtype=np.int32)
    logits = np.zeros((2, 0, 0), np.float32)
    calls = []

    def segment(model, images, names, **options):
        calls.append((images, names, options))
        keys = ["a.png", "sub/b.png"] if images == str(folder) else [images]
        found = [
            Segmentation(key, 24, 30, masks, scores, labels, ["cat", "red car"], logits)
            for key in keys
        ]
        return found if images == str(folder) else found[0]

    monkeypatch.setattr(command, "segment", segment)
    names = ["cat", "red car"]
    command.run(sam, str(folder), names, threshold=0.3, draw=str(tmp_path / "drawn"))
    assert calls == [(str(folder), names, {"detector": None, "threshold": 0.3})]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [
        ["0.7500", "70", "px", "3", "2", "13", "9", "cat", "a.png"],
        ["0.5000", "200", "px", "4", "10", "24", "20", "red", "car", "a.png"],
    ]
    assert len(lines) == 4
    for name in ("a", "sub/b"):
        for number, mask in enumerate(masks):
            with Image.open(tmp_path / "drawn" / name / f"{number}.png") as file:
                np.testing.assert_array_equal(np.asarray(file), mask)
        with Image.open(tmp_path / "drawn" / f"{name}.png") as drawing:
            assert drawing.size == (30 * 18, 24 * 18)

    command.run(sam, str(folder / "a.png"), names, as_json=True)
    rows = json.loads(capsys.readouterr().out)["masks"]
    assert [row["pixels"] for row in rows] == [70, 200]
    assert rows[0]["box"] == [3, 2, 13, 9]
    assert rows[0].keys() == {"image", "name", "score", "pixels", "box"}


def test_boxes_around_masks():
    masks = np.zeros((2, 6, 8), bool)
    masks[0, 2:4, 3:7] = True
    zeros = np.zeros(2, np.float32)
    found = Segmentation(
        "", 6, 8, masks, zeros, zeros.astype(np.int32), ["", ""], np.zeros((2, 0, 0), np.float32)
    )
    np.testing.assert_array_equal(found.boxes, [(3, 2, 7, 4), (0, 0, 0, 0)])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "no prompt: expected points, boxes or masks, or names with a detector"),
        ({"points": [[31, 2]]}, r"points: number 0 is outside of the image of 30 x 24 px .*31.0"),
        ({"points": [[3, 2], [3, -1]]}, "points: number 1 is outside"),
        ({"boxes": [[2, 2, 31, 9]]}, "boxes: number 0 is outside of the image"),
        ({"boxes": [[9, 2, 3, 8]]}, r"box 0 is \[9.0, 2.0, 3.0, 8.0\]: expected x0 < x1"),
        ({"boxes": [1, 2, 3, 4]}, r"expected x0, y0, x1, y1 \(P, 4\); found the shape \(4,\)"),
        ({"points": [1, 2]}, r"of a point per prompt \(P, 2\).* found the shape \(2,\)"),
        ({"points": [[1, float("nan")]]}, "points: expected finite numbers"),
        ({"points": [["a", "b"]]}, "points: expected an array of numbers"),
        ({"points": [[1, 2]], "labels": [2]}, r"expected 1 \(object\) or 0 .* found \[2\]"),
        ({"points": [[1, 2]], "labels": [1, 1]}, "labels: expected 1"),
        ({"labels": [1]}, "labels belong to points"),
        ({"points": [[1, 2]], "boxes": [[0, 0, 5, 5]] * 2}, "found 1 points, 2 boxes"),
        ({"points": np.zeros((0, 2))}, "at least one; found 0 points"),
        ({"masks": np.ones((1, 24, 31), bool)}, r"bool \(P, 24, 30\).*found bool \(1, 24, 31\)"),
        ({"masks": np.ones((1, 24, 30))}, r"logits \(P, 28, 28\) .*found float64 \(1, 24, 30\)"),
        ({"masks": np.zeros((1, 24, 30), bool)}, "mask 0 is empty"),
        ({"masks": -np.ones((1, 28, 28))}, "mask 0 is empty"),
        ({"points": [[1, 2]], "names": ["a cat"]}, "found both"),
        ({"names": ["a cat"]}, "expected a detector for the words"),
        ({"detector": True, "points": [[1, 2]]}, "found a detector alone"),
        ({"points": [[1, 2]], "batch_size": 0}, "batch_size"),
    ],
)
def test_errors(prompts, message, sam, monkeypatch):
    monkeypatch.setattr(prompt_runner_of(sam), "embed", None)  # nothing is computed
    if "detector" in prompts:
        prompts = prompts | {"detector": sam}
    with pytest.raises(UserError, match=message):
        vit_jax.segment(sam, IMAGE, **prompts)


def test_other_models_and_images(sam):
    spec = dataclasses.replace(model_spec("vit_ti16"), architecture=VIT)
    other = PretrainedModel(spec, ModelDef(VIT), {})
    with pytest.raises(
        UserError, match=r"takes points, boxes and masks, as .*sam_vit_b.*; found vit"
    ):
        vit_jax.segment(other, IMAGE, points=[[1, 2]])
    with pytest.raises(UserError, match="expected a model that takes points, boxes and masks"):
        vit_jax.generate_masks(other, IMAGE)
    with pytest.raises(UserError, match="prompts belong to one image; found 2 images"):
        vit_jax.segment(sam, [IMAGE, IMAGE], points=[[1, 2]])
    with pytest.raises(UserError, match=r"use vit_jax\.segment"):
        sam(np.zeros((1, 28, 28, 3), np.float32))
