"""Boxes and words drawn onto images."""

import numpy as np
from PIL import Image

from vit_jax.evaluators.drawing import draw_boxes, draw_masks, save_drawing

BOXES = np.array([[100, 200, 300, 400], [500, -50, 900, 90], [350, 450, 340, 440]], np.float32)


def test_boxes_and_names(tmp_path):
    """Boxes may leave the image or be inverted; equal names have one colour, others another."""
    grey = np.full((500, 600, 3), 90, np.uint8)
    drawing = draw_boxes(grey, BOXES, ["cat", "a dog", "cat"], np.array([0.5, 0.9, 0.1]))
    save_drawing(tmp_path / "new", "sub/image", drawing)
    with Image.open(tmp_path / "new" / "sub" / "image.png") as image:
        found = np.asarray(image)
    assert found.shape == (500, 600, 3)
    changed = (found != 90).any(axis=-1)
    assert changed[200:401, 100].all()
    assert changed[200:401, 300].all()
    assert changed[400, 100:301].all()
    assert not changed[210:390, 105:295].any()
    assert changed[185:200, 100:150].mean() > 0.5  # words above the box
    cat, dog = found[300, 100], found[45, 500]
    assert (cat != dog).any()
    assert not changed[410:430].any()


def test_small_images_are_enlarged():
    drawing = draw_boxes(
        np.zeros((20, 40, 4), np.uint8), np.zeros((0, 4), np.float32), [], np.zeros(0)
    )
    assert drawing.size == (40 * 13, 20 * 13)
    assert np.asarray(drawing).min() == 255  # transparent on white


def test_masks_are_half_transparent():
    """Pixels of a mask are between the image and a colour; the others are unchanged."""
    grey = np.full((600, 700, 3), 100, np.uint8)
    masks = np.zeros((2, 600, 700), bool)
    masks[0, 100:500, 100:400], masks[1, 200:400, 200:600] = True, True
    boxes = np.float32([(100, 100, 400, 500), (200, 200, 600, 400)])
    found = np.asarray(draw_masks(grey, masks, boxes, ["cat", "dog"], np.array([0.5, 0.9])))
    first, both, second = (found[y, x] for y, x in ((450, 250), (300, 300), (300, 500)))
    for color in (first, both, second):
        assert color.max() == (100 + 255) // 2 or color is both
    assert not np.array_equal(first, second)
    assert not np.array_equal(both, second)
    assert (found[550, 650] == 100).all()
    assert (grey == 100).all()
