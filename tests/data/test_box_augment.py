"""Augmentation of images with boxes: boxes stay on what they surround."""

import dataclasses

import numpy as np
import pytest

from vit_jax.data.augment import BoxAugmentation, parse_augmentation, parse_box_augmentation
from vit_jax.data.augment.boxed import BoxedImage
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

FIT = ImageInputs(size=(60, 60), resize="fit", shortest_edge=30)
SQUASH = ImageInputs(size=(90, 120), resize="squash", interpolation="bilinear")
CORNER = ImageInputs(size=(120, 120), resize="corner", interpolation="bilinear")
# Boxes of an image of 60 x 80 px, and their colours on black.
BOXES = np.array([[5, 8, 30, 28], [40, 10, 70, 50], [10, 35, 34, 58]], np.float32)
COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def painted(first_row=0, background=0):
    image = np.full((60, 80, 3), background, np.uint8)
    for (x0, y0, x1, y1), color in zip(BOXES.astype(int), COLORS, strict=True):
        image[y0:y1, x0:x1] = color
    rows = np.arange(first_row, first_row + len(BOXES))
    return BoxedImage.of(image, BOXES, rows)


def colored(image, color):
    """Box of the pixels whose strongest channel is that of a colour, px."""
    channel = int(color.argmax())
    others = image.astype(int).sum(axis=-1) - image[..., channel]
    rows, columns = np.nonzero((image[..., channel] > 127) & (others < 127))
    if not len(rows):
        return np.zeros(4)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def assert_boxes_surround_colors(found, inputs, tolerance=1.6):
    """The boxes of an image with a single object per colour."""
    scale = np.array([inputs.size[1], inputs.size[0]] * 2)
    assert found.image.shape == (*inputs.size, 3)
    for box, row in zip(found.boxes, found.rows, strict=True):
        np.testing.assert_allclose(
            box * scale, colored(found.image, COLORS[row % 3]), atol=tolerance
        )


@pytest.mark.parametrize("inputs", [SQUASH, CORNER], ids=["squash", "corner"])
@pytest.mark.parametrize(
    "text",
    ["", "flip(1.0)", "random_crop", "scale_jitter((0.5, 1.5))", "flip|random_crop|scale_jitter"],
)
def test_boxes_move_with_the_pixels(text, inputs):
    augment = parse_box_augmentation(text, inputs)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        assert augment.count(rng) == 1
        found = augment([painted()], rng)
        assert_boxes_surround_colors(found, inputs)


@pytest.mark.parametrize("inputs", [SQUASH, CORNER], ids=["squash", "corner"])
@pytest.mark.parametrize("side", [2, 3])
def test_a_mosaic_has_each_image_in_its_cell(inputs, side):
    probabilities = tuple(float(i == side) for i in (1, 2, 3))
    augment = parse_box_augmentation(f"mosaic({probabilities})", inputs)
    rng = np.random.default_rng(0)
    count = augment.count(rng)
    assert count == side**2
    found = augment([painted(3 * i) for i in range(count)], rng)
    assert found.rows.tolist() == list(range(3 * count))
    height, width = inputs.size
    for cell in range(count):
        row, column = divmod(cell, side)
        top, left = round(row * height / side), round(column * width / side)
        bottom, right = round((row + 1) * height / side), round((column + 1) * width / side)
        part = found.image[top:bottom, left:right]
        for box, color in zip(found.boxes[3 * cell : 3 * cell + 3], COLORS, strict=True):
            expected = np.add(colored(part, color), [left, top, left, top])
            np.testing.assert_allclose(box * ([width, height] * 2), expected, atol=1.6)


def test_grids_have_the_probabilities_of_owl():
    augment = parse_box_augmentation("mosaic", SQUASH)
    rng = np.random.default_rng(0)
    counts = np.bincount([augment.count(rng) for _ in range(4000)], minlength=10)
    np.testing.assert_allclose(counts[[1, 4, 9]] / 4000, (0.4, 0.3, 0.3), atol=0.03)


def test_transforms_before_a_mosaic_change_each_image():
    augment = parse_box_augmentation("flip(1.0)|mosaic((0, 1))", SQUASH)
    found = augment([painted(3 * i) for i in range(4)], np.random.default_rng(0))
    assert found.boxes[0, 0] == pytest.approx((80 - 30) / 160)
    after = parse_box_augmentation("mosaic((0, 1))|flip(1.0)", SQUASH)
    found = after([painted(3 * i) for i in range(4)], np.random.default_rng(0))
    assert found.boxes[0, 0] == pytest.approx(1 - 30 / 160)


def test_boxes_with_too_little_left_are_dropped():
    part = painted().moved(painted().image[:, :35], (1, 1), (-20, 0))
    clipped = part.clipped(0.5)
    # The first box keeps 8 of 20 rows; the second is outside; of the third all is left.
    assert clipped.rows.tolist() == [2]
    np.testing.assert_array_equal(clipped.boxes, [[10, 15, 34, 38]])
    assert part.clipped(0.3).rows.tolist() == [0, 2]
    assert part.clipped(0.0).rows.tolist() == [0, 2]


def test_colors_change_without_the_boxes():
    augment = parse_box_augmentation("color_jitter(0.5)|cutout(1.0)|random_erasing(1.0)", SQUASH)
    found = augment([painted()], np.random.default_rng(0))
    np.testing.assert_allclose(found.boxes * [80, 60, 80, 60], BOXES, rtol=1e-6)


def test_images_without_boxes_pass_through_everything():
    empty = dataclasses.replace(painted(), boxes=BOXES[:0], rows=np.zeros(0, np.int64))
    augment = parse_box_augmentation("flip(1.0)|random_crop|scale_jitter|mosaic((0, 1))", SQUASH)
    found = augment([empty] * 4, np.random.default_rng(0))
    assert found.boxes.shape == (0, 4)


def test_alpha_is_composited():
    pixels = np.zeros((6, 8, 4), np.uint8)
    augment = parse_box_augmentation("", SQUASH)
    assert (augment.read(pixels, BOXES[:0], 0).image == 255).all()
    colored_background = parse_box_augmentation("background(white=0.0)", SQUASH)
    found = colored_background(
        [colored_background.read(pixels, BOXES[:0], 0)], np.random.default_rng(0)
    )
    assert found.image.shape == (90, 120, 3)


@pytest.mark.parametrize(
    ("text", "inputs", "message"),
    [
        ("random_resized_crop", SQUASH, "moves pixels and has no form for boxes: expected flip"),
        ("flip|affine", SQUASH, "'affine' moves pixels"),
        ("mosaic|mosaic", SQUASH, "mosaic and mosaic both combine images"),
        ("mosaic((0.5, 0.6))", SQUASH, "numbers from 0 to 1 whose sum is 1"),
        ("mosaic(())", SQUASH, "numbers from 0 to 1"),
        ("mosaic", FIT, "expected inputs.resize 'squash' or 'corner'; found 'fit'"),
        ("random_crop(min_visible=2.0)", SQUASH, "min_visible=2.0, expected a fraction"),
        ("random_crop((0.5, 2.0))", SQUASH, "expected at most 1"),
        ("scale_jitter((0.0, 2.0))", SQUASH, "expected a range above 0"),
        ("flip", ImageInputs(size=(9, 9)), "boxes need inputs that show the whole image"),
    ],
)
def test_what_does_not_fit_is_refused(text, inputs, message):
    with pytest.raises(UserError, match=message):
        parse_box_augmentation(text, inputs)


@pytest.mark.parametrize("text", ["mosaic", "flip|random_crop", "scale_jitter"])
def test_images_without_boxes_refuse_transforms_of_boxes(text):
    with pytest.raises(UserError, match="is for images with boxes"):
        parse_augmentation(text, SQUASH)


def test_the_augmentation_is_picklable_and_deterministic():
    import pickle

    augment = parse_box_augmentation("flip|random_crop|mosaic|color_jitter(0.2)", CORNER)
    copy = pickle.loads(pickle.dumps(augment))
    assert isinstance(copy, BoxAugmentation)
    results = []
    for each in (augment, copy):
        rng = np.random.default_rng(3)
        results.append(each([painted(3 * i) for i in range(each.count(rng))], rng))
    np.testing.assert_array_equal(results[0].image, results[1].image)
    np.testing.assert_array_equal(results[0].boxes, results[1].boxes)
