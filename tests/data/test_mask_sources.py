"""Sources of masks, and batches of them."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.batches import abstract_batch, batch_transform
from vit_jax.data.broken import LEFT_OUT
from vit_jax.data.detection import DetectionConfig
from vit_jax.data.loader import Loader
from vit_jax.data.sources import Source, open_source
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

INPUTS = ImageInputs(size=(24, 32), resize="squash")
FIELDS = ("image", "sizes", "masks", "boxes", "labels", "valid")
TEXT_FIELDS = ("image", "tokens", "query_masks", "valid")


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("clip", vocab_size=49408, context_length=8)


@pytest.fixture
def semantic(tmp_path):
    """Images of 8 x 6 px with labels 0 (left), 1 (right) and 255 (the last row)."""
    for folder in ("images/a", "labels/a"):
        (tmp_path / folder).mkdir(parents=True)
    values = np.repeat(np.array([[0] * 5 + [1] * 3], np.uint8), 6, axis=0)
    values[-1] = 255
    for name in ("a/0", "a/1", "b"):
        Image.new("RGB", (8, 6), "red").save(tmp_path / f"images/{name}.jpg")
        Image.fromarray(values).save(tmp_path / f"labels/{name}.png")
    (tmp_path / "classes.txt").write_text("grass\nfire_truck\nsky\n")
    return tmp_path


def open_semantic(folder, options=""):
    return open_source(
        f"semantic:{folder}/images?labels={folder}/labels&classes={folder}/classes.txt{options}"
    )


def referring(folder, *lines, options=""):
    (folder / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Image.new("RGB", (8, 6), "red").save(folder / "0.jpg")
    return open_source(f"referring:{folder}/r.jsonl{options}")


# --- semantic -------------------------------------------------------------------------------------


def test_label_maps(semantic):
    source = open_semantic(semantic)
    assert source.class_names == ["grass", "fire_truck", "sky"]
    assert len(source) == 3
    example = source[0]
    assert example["key"].endswith("images/a/0.jpg")
    assert example["names"] == ["grass", "fire_truck"]
    np.testing.assert_array_equal(example["boxes"], [[0, 0, 5, 5], [5, 0, 8, 5]])
    np.testing.assert_array_equal(example["label_map"][:, 4], [0, 0, 0, 0, 0, -1])
    np.testing.assert_array_equal(example["ignored"].sum(axis=1), [0, 0, 0, 0, 0, 8])
    assert [mask.sum() for mask in example["segmentation"]] == [25, 15]
    assert pickle.loads(pickle.dumps(source)).annotation(1)["names"] == example["names"]


def test_values_that_count_from_one(semantic):
    example = open_semantic(semantic, "&first=1")[0]
    assert example["names"] == ["grass"]  # value 1
    assert set(np.unique(example["label_map"])) == {-1, 0}


def test_files_that_have_no_partner_are_counted(semantic, caplog):
    (semantic / "labels/b.png").rename(semantic / "labels/c.png")
    assert len(open_semantic(semantic)) == 2
    assert "1 images without a label map (as b), 1 label maps without an image (as c)" in (
        caplog.text
    )


def test_suffixes_of_file_names(semantic):
    (semantic / "labels/b.png").rename(semantic / "labels/b_labels.png")
    (semantic / "images/b.jpg").rename(semantic / "images/b_left.jpg")
    assert len(open_semantic(semantic, "&suffix=_labels&image_suffix=_left")) == 1


def test_label_maps_that_do_not_fit(semantic):
    with pytest.raises(UserError, match=r"no image of .* found 3 images and 0 label maps"):
        open_semantic(semantic, "&suffix=_x")
    (semantic / "classes.txt").write_text("grass\n")
    with pytest.raises(UserError, match="has the value 1, but there are 1 classes from 0"):
        open_semantic(semantic)[0]
    Image.new("RGB", (8, 6)).save(semantic / "labels/b.png")
    with pytest.raises(UserError, match="expected one channel"):
        open_semantic(semantic)[2]
    Image.new("L", (6, 8)).save(semantic / "labels/b.png")
    with pytest.raises(UserError, match="has 8 x 6 px, its label map 6 x 8 px"):
        open_semantic(semantic)[2]


# --- referring ------------------------------------------------------------------------------------

POLYGON = [[1, 1, 5, 1, 5, 4, 1, 4]]


def test_phrases_with_polygons_run_lengths_and_files(tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[2:5, 3:7] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/m.png")
    source = referring(
        tmp_path,
        {"image": "0.jpg", "phrase": "the red car", "segmentation": POLYGON},
        {"image": "0.jpg", "phrase": ["left man", "man"], "mask": "m.png"},
        {"image": "0.jpg", "phrase": "cat", "segmentation": {"size": [6, 8], "counts": [7, 4, 37]},
         "box": [0, 0, 20, 6]},
        options=f"?masks={tmp_path}/masks",
    )  # fmt: skip
    assert [source[i]["names"] for i in range(3)] == [["the red car"], ["left man", "man"], ["cat"]]
    np.testing.assert_array_equal(source[0]["boxes"], [[1, 1, 5, 4]])
    np.testing.assert_array_equal(source[1]["boxes"], [[3, 2, 7, 5]] * 2)
    np.testing.assert_array_equal(source[2]["boxes"], [[0, 0, 8, 6]])
    assert source[0]["vocabulary"] == ["the red car", "left man", "man", "cat"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segmentation": POLYGON, "phrase": ""}, "expected a phrase, found none"),
        ({"segmentation": POLYGON, "phrase": 3}, "expected text"),
        ({"segmentation": POLYGON, "image": None}, "expected a path"),
        ({"segmentation": POLYGON, "box": [1, 2, 3]}, "boxes that are not four numbers"),
        ({}, "expected segmentation or mask"),
        ({"segmentation": POLYGON, "mask": "m.png"}, "expected segmentation or mask"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, fields, message):
    line = {"image": "0.jpg", "phrase": "car", **fields}
    good = {"image": "0.jpg", "phrase": "car", "segmentation": POLYGON}
    source = referring(tmp_path, good, line)
    assert source[0]["names"] == ["car"]
    with pytest.raises(UserError, match=f"line 2: .*{message}"):
        source[1]
    with pytest.raises(UserError, match="no line that can be used"):
        referring(tmp_path, line)


def test_empty_and_absent_masks(tmp_path):
    empty = {"image": "0.jpg", "phrase": "car", "segmentation": {"size": [6, 8], "counts": [48]}}
    absent = {"image": "0.jpg", "phrase": "car", "mask": "absent.png"}
    source = referring(tmp_path, empty, absent)
    with pytest.raises(UserError, match=r"0\.jpg: the mask is empty"):
        source[0]
    with pytest.raises(UserError, match=r"no file .*absent\.png"):
        source[1]


# --- batches --------------------------------------------------------------------------------------


class Listed(Source):
    def __init__(self, *examples):
        self._examples = examples

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]


def mask_of(x0, y0, x1, y1):
    mask = np.zeros((12, 16), bool)
    mask[y0:y1, x0:x1] = True
    return mask


LEFT, RIGHT, CROWD = mask_of(0, 0, 8, 12), mask_of(8, 0, 16, 6), mask_of(10, 6, 16, 12)


def example(**fields):
    return {
        "image": np.full((12, 16, 3), 128, np.uint8),
        "key": "x.jpg",
        "boxes": np.array([[0, 0, 8, 12], [8, 0, 16, 6], [10, 6, 16, 12]], np.float32),
        "names": ["dog", "fire_truck", "dog"],
        "crowd": np.array([False, False, True]),
        "segmentation": [LEFT, RIGHT, CROWD],
        "vocabulary": ["cat", "dog", "fire_truck"],
        **fields,
    }


def read(fields, found, tokenizer=None, augment="", seed=0, **config):
    transform = batch_transform(
        fields, Listed(found), augment, INPUTS, tokenizer=tokenizer,
        detection=DetectionConfig(**config),
    )  # fmt: skip
    return transform(found, np.random.default_rng(seed))


def grid(mask, stride=4):
    """A mask of 12 x 16 px on the input of 24 x 32 px."""
    return np.kron(mask, np.ones((2, 2), bool)).reshape(24 // stride, stride, 32 // stride, stride)[
        :, 0, :, 0
    ]


@pytest.mark.parametrize("fields", [FIELDS, TEXT_FIELDS], ids=["objects", "prompts"])
def test_fields_have_the_shapes_that_a_plan_assumes(tokenizer, fields):
    sizes = DetectionConfig(max_boxes=5, max_queries=3, mask_stride=2)
    batch = read(fields, example(), tokenizer, max_boxes=5, max_queries=3, mask_stride=2)
    batch.pop(LEFT_OUT)
    expected = abstract_batch(fields, 1, INPUTS, tokenizer.context_length, sizes)
    found = {name: ((1, *value.shape), value.dtype) for name, value in batch.items()}
    assert found == {name: (value.shape, value.dtype) for name, value in expected.items()}


def test_masks_of_single_objects_lie_beside_their_boxes():
    batch = read(FIELDS, example())
    np.testing.assert_array_equal(batch["masks"][0], grid(LEFT))
    np.testing.assert_array_equal(batch["masks"][1], grid(RIGHT))
    assert not batch["masks"][2:].any()
    assert batch["labels"].tolist()[:3] == [0, 1, -1]
    np.testing.assert_allclose(batch["boxes"][1], [0.75, 0.25, 0.5, 0.5])
    assert batch["valid"].all()
    assert batch[LEFT_OUT]["crowds"] == 1


def test_objects_without_a_visible_mask_are_left_out():
    tiny = mask_of(8, 0, 9, 1)
    batch = read(FIELDS, example(segmentation=[None, tiny, CROWD]))
    assert batch["labels"].max() == -1
    assert not batch["masks"].any()
    assert batch[LEFT_OUT]["without a mask"] == 1
    assert batch[LEFT_OUT]["masks without a cell"] == 1
    batch = read(FIELDS, example(segmentation=[None, RIGHT, CROWD]))
    assert batch["labels"].tolist()[:2] == [0, -1]
    np.testing.assert_array_equal(batch["masks"][0], grid(RIGHT))


def test_masks_follow_the_choice_of_boxes():
    many = example(
        boxes=np.tile(np.array([[0, 0, 8, 12], [8, 0, 16, 6]], np.float32), (10, 1)),
        names=["dog", "cat"] * 10, crowd=np.zeros(20, bool), segmentation=[LEFT, RIGHT] * 10,
    )  # fmt: skip
    batch = read(FIELDS, many, max_boxes=6, augment="flip(1.0)")
    centre = batch["boxes"][:, 0]
    for mask, x in zip(batch["masks"], centre, strict=True):
        expected = grid(RIGHT if x < 0.5 else LEFT)[:, ::-1]
        np.testing.assert_array_equal(mask, expected)


def test_the_mask_of_a_prompt_is_that_of_all_objects_of_its_name(tokenizer):
    batch = read(TEXT_FIELDS, example(), tokenizer, max_queries=4, max_boxes=1)
    asked = [row.tobytes() for row in tokenizer(["dog", "fire truck", "cat"])]
    assert [row.tobytes() for row in batch["tokens"][:3]] == asked
    assert not batch["tokens"][3].any()
    np.testing.assert_array_equal(batch["query_masks"][0], grid(LEFT | CROWD))
    np.testing.assert_array_equal(batch["query_masks"][1], grid(RIGHT))
    assert not batch["query_masks"][2:].any()  # a name that is absent, and padding


def test_a_name_of_which_an_object_has_no_mask_is_not_asked(tokenizer):
    found = example(segmentation=[LEFT, RIGHT, None])
    batch = read(TEXT_FIELDS, found, tokenizer, max_queries=4)
    asked = [row.tobytes() for row in batch["tokens"] if row.any()]
    assert asked == [row.tobytes() for row in tokenizer(["fire truck", "cat"])]
    assert batch[LEFT_OUT]["without a mask"] == 1


def test_a_box_that_a_crop_drops_leaves_its_pixels(tokenizer):
    """What is left of an object of a name that is asked belongs to the mask of the name."""
    for seed in range(20):
        crop = "random_crop((0.3, 0.5), min_visible=1.0)"
        batch = read(TEXT_FIELDS, example(), tokenizer, augment=crop, seed=seed, mask_stride=1)
        union = batch["query_masks"].any(axis=0)
        assert union.mean() > 0.3  # the objects fill three quarters of the image


def test_pixels_that_are_not_annotated_are_not_valid(semantic, tokenizer):
    source = open_semantic(semantic)
    transform = batch_transform(TEXT_FIELDS, source, "", INPUTS, tokenizer=tokenizer)
    batch = transform(source[0], np.random.default_rng(0))
    np.testing.assert_array_equal(batch["valid"].all(axis=1), [True] * 5 + [False])
    np.testing.assert_array_equal(batch["query_masks"][0], np.arange(8) < np.full((6, 1), 5) * 1.0
                                  * (np.arange(6) < 5)[:, None])  # fmt: skip


def test_batches_are_the_same_in_any_process(emoji_directory, tokenizer):
    source = open_source("emoji_scenes:heldout_base?size=32&count=20")
    augment = "flip|random_crop|mosaic"
    transform = batch_transform(TEXT_FIELDS, source, augment, INPUTS, tokenizer=tokenizer)
    whole = next(Loader(source, transform, batch_size=4, seed=3))
    again = next(Loader(*pickle.loads(pickle.dumps((source, transform))), batch_size=4, seed=3))
    assert set(whole) == set(TEXT_FIELDS)
    for name in TEXT_FIELDS:
        np.testing.assert_array_equal(again[name], whole[name])


def test_scenes_keep_their_masks(emoji_directory):
    source = open_source("emoji_scenes:heldout_base?size=32&count=20")
    inputs = ImageInputs(size=(32, 32), resize="squash")
    transform = batch_transform(
        FIELDS, source, "", inputs, tokenizer=None, detection=DetectionConfig(mask_stride=1)
    )
    found = source[4]
    batch = transform(found, np.random.default_rng(0))
    count = len(found["names"])
    np.testing.assert_array_equal(batch["masks"][:count], found["segmentation"])


# --- what is refused ------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(tokenizer):
    plain = example()
    del plain["segmentation"]
    with pytest.raises(UserError, match=r"x\.jpg has no masks: expected a source of masks"):
        read(FIELDS, plain)
    with pytest.raises(UserError, match="has 2 masks, expected one for each of 3 boxes"):
        read(FIELDS, example(segmentation=[LEFT, RIGHT]))
    with pytest.raises(UserError, match=r"x\.jpg, dog: a mask has 9 x 9 px"):
        read(FIELDS, example(segmentation=[np.ones((9, 9), bool), RIGHT, CROWD]))
    with pytest.raises(UserError, match=r"mask_stride=5: expected a divisor of .*24, 32"):
        read(FIELDS, example(), mask_stride=5)
    with pytest.raises(UserError, match="mask_stride=0: expected at least 1"):
        DetectionConfig(mask_stride=0)
