"""Masks: decoding, and how they follow the pixels of their image through augmentation."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from vit_jax.data.augment import parse_box_augmentation
from vit_jax.data.boxed_examples import Part
from vit_jax.data.images import EncodedImage
from vit_jax.data.masked_examples import PlacedMasks
from vit_jax.data.masks import box_of, decode_mask, paint_labels, place_mask
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

SQUASH = ImageInputs(size=(48, 64), resize="squash", interpolation="bilinear")
CORNER = ImageInputs(size=(64, 64), resize="corner", interpolation="bilinear")
FIT = ImageInputs(size=(64, 64), resize="fit", shortest_edge=40, mean=(0.0, 0.0, 0.0))
COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def encoded(array, **fields):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **fields)
    return EncodedImage(file.getvalue(), "m.png")


# --- decoding -------------------------------------------------------------------------------------


def test_run_lengths_and_images_are_the_same_mask():
    mask = np.zeros((5, 4), bool)
    mask[1:4, 2] = True
    counts = {"size": [5, 4], "counts": [11, 3, 6]}  # by columns
    for stored in (mask, encoded(mask), encoded(mask.astype(np.uint8)), counts):
        np.testing.assert_array_equal(decode_mask(stored, 5, 4), mask)
        assert box_of(stored) == [2, 1, 3, 4]


def test_a_palette_is_read_as_numbers():
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "L").convert("P")
    image.putpalette([0, 0, 0] * 256)  # colors that are all the same
    file = io.BytesIO()
    image.save(file, "PNG")
    found = decode_mask(EncodedImage(file.getvalue(), "p.png"), 2, 2)
    np.testing.assert_array_equal(found, [[False, True], [True, False]])


def test_polygons():
    square = [2.0, 1.0, 6.0, 1.0, 6.0, 5.0, 2.0, 5.0]
    expected = np.zeros((8, 10), bool)
    expected[1:5, 2:6] = True
    np.testing.assert_array_equal(decode_mask([square], 8, 10), expected)
    other = [7, 6, 9, 6, 9, 8, 7, 8]
    expected[6:8, 7:9] = True
    np.testing.assert_array_equal(decode_mask([square, [1, 2, 3, 4], other], 8, 10), expected)
    assert box_of([square, other]) == [2, 1, 9, 8]


@pytest.mark.parametrize("stored", [None, [], [[1, 2, 3, 4]], [[]]])
def test_no_mask(stored):
    assert decode_mask(stored, 8, 10) is None


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("RLE", "found str"),
        ([[1, 2, 3, 4, 5]], "lists of x, y"),
        ([[1, 2, 3, 4, 5, "6"]], "lists of x, y"),
        ([[1, 2, 3, 4, 5, float("nan")]], "far outside the image"),
        ([[1, 2, 3, 4, 5, 10**400]], "far outside the image"),
        ({"size": [10, 8], "counts": [80]}, r"size \[10, 8\], the image \[8, 10\]"),
        ({"size": [8, 10], "counts": [81]}, "cannot be decoded"),
        ({"size": [8, 10], "counts": [8]}, "cannot be decoded"),
        ({"size": [8, 10], "counts": [-8, 88]}, "cannot be decoded"),
        ({"size": [8, 10], "counts": None}, "cannot be decoded"),
        ({"counts": [80]}, "size None"),
        (np.zeros((10, 8), bool), "a mask has 8 x 10 px, the image 10 x 8 px"),
        (encoded(np.zeros((8, 10, 3), np.uint8)), "found the mode RGB"),
        (EncodedImage(b"x", "m.png"), r"cannot read the image m\.png"),
    ],
)
def test_what_is_no_mask(stored, message):
    with pytest.raises(UserError, match=message):
        decode_mask(stored, 8, 10)


def test_sizes_without_an_image_are_limited():
    with pytest.raises(UserError, match="expected height and width"):
        box_of({"size": [10**6, 10**6], "counts": [10**12]})


def test_smaller_masks_cover_larger_ones():
    large, small = np.ones((2, 3), bool), np.eye(2, 3, dtype=bool)
    painted = paint_labels([small, large & (np.arange(3) < 2)], [4, 7], 2, 3, -1)
    np.testing.assert_array_equal(painted, [[4, 7, -1], [7, 4, -1]])


# --- on a grid ------------------------------------------------------------------------------------


def test_a_cell_belongs_to_the_mask_of_at_least_half_of_it():
    """Against a sum over all samples of every cell."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random(rng.integers(3, 40, 2)) < 0.5
        corners = rng.uniform(-3, 9, (2, 2))
        if min(abs(corners[0] - corners[1])) < 1:
            continue
        frame, window = corners.reshape(-1).astype(np.float32), np.array([1, 0, 6, 4.5], np.float32)
        found = place_mask(mask, frame, window, (5, 7))
        counts = np.zeros((5, 7))
        steps = np.minimum(8, np.ceil(mask.shape[::-1] / abs(frame[2:] - frame[:2]))).astype(int)
        for row, column, i, j in np.ndindex(5, 7, steps[1], steps[0]):
            x, y = column + (j + 0.5) / steps[0], row + (i + 0.5) / steps[1]
            px = int(np.floor((x - frame[0]) / (frame[2] - frame[0]) * mask.shape[1]))
            py = int(np.floor((y - frame[1]) / (frame[3] - frame[1]) * mask.shape[0]))
            inside = 0 <= px < mask.shape[1] and 0 <= py < mask.shape[0]
            if inside and window[0] < x < window[2] and window[1] < y < window[3]:
                counts[row, column] += mask[py, px]
        np.testing.assert_array_equal(found, counts >= steps.prod() / 2)


def test_an_image_of_the_size_of_the_grid_keeps_its_masks():
    mask = np.random.default_rng(0).random((48, 64)) < 0.5
    whole = np.array([0, 0, 64, 48], np.float32)
    np.testing.assert_array_equal(place_mask(mask, whole, whole, (48, 64)), mask)


def painted(seed):
    """An image with a disc of each color, and their masks."""
    rng = np.random.default_rng(seed)
    image = np.zeros((96, 128, 3), np.uint8)
    for color, x in zip(COLORS.tolist(), (20, 62, 104), strict=True):
        cv2.circle(image, (x, int(rng.integers(25, 70))), 18, color, -1)
    masks = [(image == color).all(axis=-1) for color in COLORS]
    return image, masks


def augmented(text, inputs, seed, stride=1):
    """Pixels, and the masks of the objects, of one augmented image."""
    augment = parse_box_augmentation(text, inputs)
    rng = np.random.default_rng(seed)
    parts, images = [], []
    for i in range(augment.count(rng)):
        image, masks = painted(i)
        boxes = np.array([box_of(mask) for mask in masks], np.float32)
        part = Part(str(i), image, boxes, ["x"] * 3, 0, frozenset(), (), (), masks=masks,
                    ignored=masks[0])  # fmt: skip
        images.append(augment.read(image, boxes, 3 * i))
        parts.append(part)
    found = augment(images, rng)
    size = tuple(side // stride for side in inputs.size)
    return found, PlacedMasks(found, parts, [(96, 128)] * len(parts), inputs.size, size)


@pytest.mark.parametrize("inputs", [SQUASH, CORNER, FIT], ids=["squash", "corner", "fit"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "flip(1.0)",
        "random_crop",
        "scale_jitter((0.5, 1.5))",
        "random_crop|flip(1.0)|scale_jitter",
    ],
)
def test_masks_move_with_the_pixels(text, inputs):
    for seed in range(3):
        found, masks = augmented(text, inputs, seed)
        for row, color in enumerate(COLORS):
            seen = found.image[..., color.argmax()] > 127
            differ = seen ^ masks.mask(row)
            # Only pixels at an edge, where the color is mixed.
            inner = cv2.erode(seen.astype(np.uint8), np.ones((5, 5))) > 0
            outer = cv2.dilate(seen.astype(np.uint8), np.ones((5, 5))) > 0
            assert not (differ & (inner | ~outer)).any()
        ignored = found.image[..., 0] > 127
        assert not (masks.valid() & cv2.erode(ignored.astype(np.uint8), np.ones((5, 5))) > 0).any()


@pytest.mark.parametrize("text", ["mosaic((0, 1))", "random_crop|mosaic((0, 1))|flip(1.0)"])
def test_masks_of_a_mosaic_stay_in_their_cells(text):
    found, masks = augmented(text, SQUASH, 0)
    union = np.zeros((3, 48, 64), bool)
    for row in range(12):
        union[row % 3] |= masks.mask(row)
    for color, mask in zip(COLORS, union, strict=True):
        seen = found.image[..., color.argmax()] > 127
        assert (seen ^ mask).sum() < 0.2 * seen.sum() + 8
        outer = cv2.dilate(seen.astype(np.uint8), np.ones((5, 5))) > 0
        assert not (mask & ~outer).any()


def test_padding_is_not_valid():
    _, masks = augmented("", FIT, 0, stride=4)
    valid = masks.valid()
    assert valid.shape == (16, 16)
    assert not valid[10:].any()  # an image of 40 x 53 px
    assert not valid[:, 14:].any()
    assert valid[0, :13].all()
