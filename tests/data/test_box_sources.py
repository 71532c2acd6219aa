"""Sources of boxes: COCO, LVIS, grounding, and the files that strangers hand in."""

import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.sources import open_source
from vit_jax.errors import UserError

WIDTH, HEIGHT = 40, 30


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (WIDTH, HEIGHT), "red").save(tmp_path / "images" / name)
    return tmp_path


def image(identifier, name, **fields):
    return {"id": identifier, "file_name": name, "height": HEIGHT, "width": WIDTH, **fields}


def annotation(identifier, image_id, category_id, bbox, **fields):
    return {
        "id": identifier, "image_id": image_id, "category_id": category_id, "bbox": bbox, **fields
    }  # fmt: skip


IMAGES = [image(7, "a.jpg"), image(8, "b.jpg"), image(9, "c.jpg")]
CATEGORIES = [{"id": 90, "name": "fire_truck"}, {"id": 3, "name": "cat"}]
ANNOTATIONS = [annotation(1, 7, 90, [1, 2, 10, 20.5]), annotation(2, 9, 3, [0, 0, 5, 5])]


def coco(folder, images=IMAGES, annotations=ANNOTATIONS, categories=CATEGORIES, **more):
    content = {"images": images, "annotations": annotations, "categories": categories, **more}
    (folder / "boxes.json").write_text(json.dumps(content))
    return open_source(f"coco:{folder}/boxes.json?images={folder}/images")


def grounding(folder, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "g.jsonl").write_text(text)
    return open_source(f"grounding:{folder}/g.jsonl?images={folder}/images")


# --- COCO -----------------------------------------------------------------------------------------


def test_coco_boxes_classes_and_images(folder):
    source = coco(folder)
    assert source.class_names == ["cat", "fire_truck"]  # by id
    assert len(source) == 3
    assert source.labels is None
    example = source[0]
    np.testing.assert_array_equal(example["boxes"], [[1, 2, 11, 22.5]])
    assert example["boxes"].dtype == np.float32
    assert example["names"] == ["fire_truck"]
    assert example["image"].shape == (HEIGHT, WIDTH)
    assert example["key"] == f"{folder}/images/a.jpg"
    assert example["vocabulary"] == source.class_names
    assert "negatives" not in example
    assert source[2]["names"] == ["cat"]


def test_areas_and_frequencies(folder):
    """The area of the file is that of the mask; without one it is that of the box."""
    boxes = [
        annotation(1, 7, 90, [1, 2, 10, 20], area=83.5),
        annotation(2, 7, 3, [0, 0, 5, 5], area="?"),
    ]
    frequencies = [{**each, "frequency": f} for each, f in zip(CATEGORIES, "rc", strict=True)]
    example = coco(folder, annotations=boxes, categories=frequencies)[0]
    assert example["areas"].tolist() == [83.5, 25]
    assert example["frequencies"] == ["c", "r"]  # by id
    assert (
        "frequencies" not in coco(folder, categories=[*frequencies, CATEGORIES[0] | {"id": 4}])[0]
    )


def test_an_image_without_boxes_is_an_example(folder):
    example = coco(folder)[1]
    assert example["boxes"].shape == (0, 4)
    assert example["names"] == []
    assert example["crowd"].shape == (0,)


def test_polygons_rle_and_crowds_are_kept(folder):
    polygon, rle = [[1.0, 2.0, 3.0, 2.0, 3.0, 4.0]], {"size": [HEIGHT, WIDTH], "counts": "0P1"}
    example = coco(
        folder,
        annotations=[
            annotation(1, 7, 3, [1, 2, 3, 4], segmentation=polygon, iscrowd=0),
            annotation(2, 7, 3, [1, 2, 9, 9], segmentation=rle, iscrowd=1),
        ],
    )[0]
    assert example["segmentation"] == [polygon, rle]
    assert example["crowd"].tolist() == [False, True]


def test_annotations_agree_with_pycocotools(folder):
    pytest.importorskip("faster_coco_eval")
    from faster_coco_eval import COCO

    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 10, (20, 4)).round(2) + 0.5
    annotations = [
        annotation(i, 7 + i % 3, (3, 90)[i % 2], box.tolist()) for i, box in enumerate(boxes, 1)
    ]
    source, judge = coco(folder, annotations=annotations), COCO(str(folder / "boxes.json"))
    for index, image_id in enumerate((7, 8, 9)):
        found = source.annotation(index)
        expected = judge.loadAnns(judge.getAnnIds(imgIds=[image_id]))
        names = [judge.cats[each["category_id"]]["name"] for each in expected]
        assert found["names"] == names
        corners = np.array([each["bbox"] for each in expected])
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(found["boxes"], corners, rtol=1e-6)


def test_lvis_has_urls_and_federated_negatives(folder):
    (folder / "images" / "train2017").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "train2017" / "d.jpg")
    url = "http://images.cocodataset.org/train2017/"
    images = [
        {
            "id": 1, "coco_url": url + name, "height": HEIGHT, "width": WIDTH,
            "neg_category_ids": [3], "not_exhaustive_category_ids": [90],
        }
        for name in ("d.jpg", "a.jpg")
    ]  # fmt: skip
    images[1]["id"] = 2  # its image lies in the folder itself
    source = coco(folder, images, [annotation(1, 1, 90, [0, 0, 9, 9])])
    example = source[0]
    assert example["negatives"] == ["cat"]
    assert example["not_exhaustive"] == ["fire_truck"]
    assert source[1]["key"] == f"{folder}/images/a.jpg"


def test_the_folder_of_the_file_is_the_default(folder):
    coco(folder)
    (folder / "boxes.json").rename(folder / "images" / "boxes.json")
    assert open_source(f"coco:{folder}/images/boxes.json")[0]["names"] == ["fire_truck"]


def test_a_pickled_source_reads_the_same(folder):
    source = coco(folder)
    (folder / "boxes.json").unlink()
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0]["image"] == source[0]["image"]


def test_slices_and_mixtures(folder):
    coco(folder)
    spec = f"coco:{folder}/boxes.json?images={folder}/images"
    assert open_source(f"{spec}[1:]")[1]["names"] == ["cat"]
    assert open_source(f"{spec} + {spec}")[3]["names"] == ["fire_truck"]


# --- COCO, as strangers write it ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (annotation(3, 70, 3, [1, 1, 5, 5]), "1 annotations of images that are not in the file"),
        (annotation(3, 7, 1, [1, 1, 5, 5]), "category id is not among the categories"),
        (annotation(3, 7, None, [1, 1, 5, 5]), "category id is not among the categories"),
        (annotation(3, 7, 3, [1, 1, 0, 5]), "1 boxes without area"),
        (annotation(3, 7, 3, [1, 1, -4, 5]), "1 boxes without area"),
        (annotation(3, 7, 3, [50, 1, 5, 5]), "1 boxes outside their image"),
        (annotation(3, 7, 3, [1, 1, float("nan"), 5]), "1 boxes with infinite numbers or NaN"),
        (annotation(3, 7, 3, [1, 1, 5]), "1 boxes that are not four numbers"),
        (annotation(3, 7, 3, ["1", "1", "5", "5"]), "1 boxes that are not four numbers"),
        (annotation(3, 7, 3, None), "1 boxes that are not four numbers"),
        ({"id": 3}, "1 annotations of images that are not in the file"),
        (ANNOTATIONS[0], "1 annotations that are listed twice"),
    ],
)
def test_unusable_annotations_are_left_out_and_counted(folder, caplog, bad, message):
    with caplog.at_level(logging.WARNING):
        source = coco(folder, annotations=[*ANNOTATIONS, bad])
    assert "left out 1 " in caplog.text
    assert message in caplog.text
    assert f"annotation {bad['id']}" in caplog.text
    assert source[0]["names"] == ["fire_truck"]


def test_no_usable_annotation_is_an_error(folder):
    wrong = [annotation(1, 7, 0, [1, 1, 5, 5]), annotation(2, 7, 3, [1, 1, 0, 0])]
    with pytest.raises(UserError, match=r"no annotation can be used: 1 annot.*1 boxes without"):
        coco(folder, annotations=wrong)


def test_boxes_are_clipped_to_their_image(folder, caplog):
    boxes = [[-5, -5, 20, 20], [38, 28, 10, 10], [0, 0, WIDTH + 0.5, 10]]
    with caplog.at_level(logging.WARNING):
        example = coco(folder, annotations=[annotation(i, 7, 3, b) for i, b in enumerate(boxes)])[0]
    np.testing.assert_array_equal(
        example["boxes"], [[0, 0, 15, 15], [38, 28, 40, 30], [0, 0, 40, 10]]
    )
    assert "clipped 2 boxes that reach outside their image (as annotation 0)" in caplog.text


def test_ids_of_any_type(folder):
    images = [image("7", "a.jpg"), image(8.0, "b.jpg"), image("frame_1", "c.jpg")]
    categories = [{"id": "3", "name": "cat"}, {"id": 90.0, "name": "dog"}]
    annotations = [
        annotation("x", 7.0, 3, [0, 0, 5, 5]),
        annotation(None, "8", "90", [0, 0, 5, 5]),
        annotation([], "frame_1", "3", [0, 0, 5, 5]),
    ]
    source = coco(folder, images, annotations, categories)
    assert [source.annotation(i)["names"] for i in range(3)] == [["cat"], ["dog"], ["cat"]]


def test_an_annotation_id_of_two_boxes_is_said(folder, caplog):
    two = [annotation(1, 7, 3, [0, 0, 5, 5]), annotation(1, 7, 3, [0, 0, 6, 6])]
    with caplog.at_level(logging.WARNING):
        assert len(coco(folder, annotations=two)[0]["boxes"]) == 2
    assert "kept 1 annotations with the id of another one (as annotation 1)" in caplog.text


def test_missing_images_are_broken_examples(folder, caplog):
    (folder / "images" / "b.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        source = coco(folder)
    assert "1 of 3 images are not in" in caplog.text
    assert "(as b.jpg): they are broken examples" in caplog.text
    assert source[0]["names"]
    with pytest.raises(UserError, match=r"no file .*b\.jpg"):
        source[1]


def test_no_image_at_all_is_an_error(folder):
    with pytest.raises(UserError, match=r"none of the 1 images .* name their folder"):
        coco(folder, [image(7, "elsewhere/a.jpg")], ANNOTATIONS[:1])
    (folder / "images").rename(folder / "other")
    with pytest.raises(UserError, match=r"no folder .*images.*\?images=DIR"):
        coco(folder)


def test_an_image_of_another_size_than_in_the_file(folder):
    source = coco(folder, [image(7, "a.jpg", width=HEIGHT) | {"height": WIDTH}], ANNOTATIONS[:1])
    with pytest.raises(UserError, match=r"a\.jpg has 40 x 30 px, its annotations are for 30 x 40"):
        source[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [image(7, "a.jpg"), image(7, "b.jpg")]}, "image id 7 stands for 'a.jpg' and"),
        ({"images": [{"id": 7, "file_name": "a.jpg"}]}, "expected an image with id, file_name"),
        ({"images": [image(True, "a.jpg")]}, "expected an image with id"),
        ({"images": []}, "has no images"),
        ({"images": {"7": "a.jpg"}}, "expected images as a list of objects, found {"),
        ({"categories": [{"id": 3}]}, "expected a category with an id and a name"),
        ({"categories": [*CATEGORIES, {"id": 3, "name": "dog"}]}, "id 3 stands for 'cat' and"),
    ],
)
def test_what_cannot_be_understood_is_an_error(folder, change, message):
    with pytest.raises(UserError, match=message):
        coco(folder, **change)


def test_images_that_are_listed_twice(folder, caplog):
    with caplog.at_level(logging.WARNING):
        source = coco(folder, [*IMAGES, IMAGES[0], image(10, "a.jpg")])
    assert len(source) == 4
    assert "left out 1 images that are listed twice (as a.jpg)" in caplog.text
    assert "kept 1 images with the file of another one (as a.jpg)" in caplog.text


def test_two_categories_of_one_name_are_one_class(folder, caplog):
    categories = [{"id": 0, "name": "cat"}, {"id": 3, "name": "cat "}, {"id": 90, "name": "dog"}]
    with caplog.at_level(logging.WARNING):
        source = coco(folder, categories=categories)
    assert source.class_names == ["cat", "dog"]
    assert "the same class, as 'cat' (ids 0, 3)" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is a list, as a file of detections"),
        ('{"info": {}, "images": []}', "has no annotations: expected .* found info, images"),
        ("3", "has no images"),
    ],
)
def test_files_that_are_not_cocos(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        open_source(f"coco:{tmp_path}/x.json")
    with pytest.raises(UserError, match="no file"):
        open_source(f"coco:{tmp_path}/y.json")


def test_a_file_without_annotations(folder, caplog):
    with caplog.at_level(logging.WARNING):
        assert coco(folder, annotations=[])[0]["names"] == []
    assert "has no annotations" in caplog.text


def test_unknown_ids_of_lvis_are_said(folder, caplog):
    with caplog.at_level(logging.WARNING):
        source = coco(folder, [image(7, "a.jpg", neg_category_ids=[3, 4])], ANNOTATIONS[:1])
    assert source[0]["negatives"] == ["cat"]
    assert "neg_category_ids that are not among the categories" in caplog.text


# --- grounding ------------------------------------------------------------------------------------

CAPTION = "a red car beside a tree"
LINE = {
    "image": "a.jpg",
    "caption": CAPTION,
    "regions": [
        {"box": [1, 2, 20, 16], "phrase": "a red car"},
        {"box": [21, 5, 30, 17.5], "spans": [[0, 1], [19, 23]]},
    ],
}


def test_grounding_has_captions_spans_and_boxes(folder):
    source = grounding(folder, LINE)
    example = source[0]
    assert example["captions"] == [CAPTION]
    assert example["names"] == ["a red car", "a tree"]
    assert example["spans"] == [[[0, 9]], [[0, 1], [19, 23]]]
    np.testing.assert_array_equal(example["boxes"], [[1, 2, 20, 16], [21, 5, 30, 17.5]])
    assert not example["crowd"].any()
    assert example["image"].shape == (HEIGHT, WIDTH)
    assert source.class_names is None


def region(**fields):
    return {**LINE, "regions": [{"box": [1, 2, 20, 16], **fields}]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (region(phrase="a dog"), "the phrase 'a dog' occurs 0 times"),
        (region(phrase="a"), "the phrase 'a' occurs 2 times"),
        (region(spans=[[3, 99]]), r"the span \[3, 99\] is not inside the caption of 23"),
        (region(spans=[]), "expected a region with a phrase or spans"),
        (region(phrase="a red car", box=[5, 5, 5, 9]), "boxes without area"),
        (region(phrase="a red car", box="1,2,3,4"), "boxes that are not four numbers"),
        ({**LINE, "regions": None}, "regions is None"),
        ({**LINE, "caption": ""}, "expected one caption, found 0"),
        ({**LINE, "image": 3}, "image is 3"),
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
    ],
)
def test_broken_lines_are_counted_and_refused(folder, caplog, line, message):
    with caplog.at_level(logging.WARNING):
        source = grounding(folder, LINE, line)
    assert "1 of 2 lines are broken" in caplog.text
    with pytest.raises(UserError, match=f"line 2: .*{message}"):
        source[1]
    assert source[0]["names"]
    with pytest.raises(UserError, match="no line that can be used"):
        grounding(folder, line)


def test_a_grounding_box_outside_its_image_is_a_broken_example(folder):
    source = grounding(folder, region(phrase="a red car", box=[1, 2, 45, 16]))
    with pytest.raises(UserError, match=r"box .* is not inside the image of 40 x 30 px"):
        source[0]
