"""transformers' processor and pipeline of SAM at published sizes (pytest -m parity)."""

import pytest

pytest.importorskip("transformers")

import numpy as np
import torch
from transformers.models.sam.image_processing_sam import SamImageProcessor, _mask_to_rle
from transformers.models.sam.processing_sam import SamProcessor

from tests.fixtures.generators.make_detection_inputs import smooth_image
from tests.weights.reference import relative_error
from vit_jax.models.registry import model_spec
from vit_jax.segmentation.automatic import Thresholds, _is_cut, _is_stable
from vit_jax.segmentation.crops import crop_windows, point_grid
from vit_jax.segmentation.prompts import make_prompts
from vit_jax.segmentation.results import box_around

pytestmark = pytest.mark.parity

INPUTS = model_spec("sam_vit_b").inputs
SHAPES = [(427, 640), (1999, 333), (1024, 1024), (301, 97), (1500, 2250)]


def discs(count: int, seed: int) -> np.ndarray:
    """Logits of blurred discs (count, 256, 256)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:256, :256]
    x, y = rng.uniform(0, 256, (2, count, 1, 1))
    radius, sharpness = rng.uniform(4, 90, (count, 1, 1)), rng.uniform(0.2, 5, (count, 1, 1))
    return (sharpness * (radius - np.hypot(columns - x, rows - y))).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_prompts_and_masks(shape):
    processor = SamProcessor(SamImageProcessor())
    image, (height, width) = smooth_image(*shape), shape
    rng = np.random.default_rng(height)
    points = rng.uniform(0, (width, height), (3, 2, 2))
    corners = np.sort(rng.uniform(0, (width, height), (3, 2, 2)), axis=1)
    given = processor(
        image, input_points=[points.tolist()], input_labels=[[[1, 0]] * 3],
        input_boxes=[corners.reshape(3, 4).tolist()], return_tensors="pt",
        input_data_format="channels_last",
    )  # fmt: skip
    rows, columns = INPUTS.scaled_size(height, width)
    assert given["reshaped_input_sizes"][0].tolist() == [rows, columns]
    found = np.asarray(INPUTS.normalize(INPUTS(image)[None])[0])[:rows, :columns]
    pixels = given["pixel_values"][0].permute(1, 2, 0).numpy()
    level = 1 / 255 / min(INPUTS.std)
    assert np.abs(found - pixels[:rows, :columns]).max() <= 1.001 * level
    assert not pixels[rows:].any()  # padding, which the model sets to zero
    assert not pixels[:, columns:].any()

    prompts = make_prompts(
        points, [[1, 0]] * 3, corners.reshape(3, 4), None,
        size=shape, inputs=INPUTS, mask_size=(256, 256),
    )  # fmt: skip
    boxes = given["input_boxes"][0].reshape(3, 2, 2)
    expected = np.concatenate([given["input_points"][0], boxes], axis=1)
    np.testing.assert_allclose(prompts.points, expected, rtol=1e-5, atol=1e-4)

    logits = discs(4, height)
    (large,) = processor.post_process_masks(
        torch.tensor(logits)[None, None], given["original_sizes"], given["reshaped_input_sizes"],
        binarize=False,
    )  # fmt: skip
    large = large[0].numpy()
    found = np.stack([INPUTS.restore(each, height, width) for each in logits])
    assert relative_error(found, large) < 1e-5


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_parts_points_and_filters(shape):
    """All parts of two divisions, and which masks of each one count."""
    image, (height, width) = smooth_image(*shape), shape
    processor = SamImageProcessor()
    boxes, points, _, _ = processor.generate_crop_boxes(image, 1024, 2, 512 / 1500, 5)
    windows = [window for _, window in crop_windows(height, width, 2, 512 / 1500)]
    found = [(left, top, left + w, top + h) for top, left, h, w in windows]
    np.testing.assert_array_equal(found, boxes.numpy())
    thresholds = Thresholds(iou=0.7, stability=0.9, offset=1.0)
    kept = 0
    for number, (top, left, h, w) in enumerate(windows):
        rows, columns = INPUTS.scaled_size(h, w)
        at = point_grid(5) * np.array([w, h], np.float32)
        at = at * np.array([columns / w, rows / h], np.float32)
        np.testing.assert_allclose(at, points[0, :, number].numpy(), rtol=1e-5)
        logits = np.stack([INPUTS.restore(each, h, w) for each in discs(40, number)])
        scores = np.random.default_rng(number).uniform(0.5, 1, 40).astype(np.float32)
        expected, quality, around = processor.filter_masks(
            torch.tensor(logits)[:, None], torch.tensor(scores)[:, None], shape, boxes[number],
            thresholds.iou, thresholds.stability,
        )  # fmt: skip
        masks, qualities, theirs = [], [], []
        for large, score in zip(logits, scores, strict=True):
            x0, y0, x1, y1 = box_around(large > 0)
            inner = np.array([x0, y0, x1 - 1, y1 - 1], np.float32)
            cut = _is_cut(inner, (top, left, h, w), shape)
            if score > thresholds.iou and _is_stable(large, thresholds) and not cut:
                mask = np.zeros(shape, bool)
                mask[top : top + h, left : left + w] = large > 0
                masks.append(mask)
                qualities.append(score)
                theirs.append(inner + np.array([left, top, left, top]))
        np.testing.assert_array_equal(quality, np.array(qualities, np.float32))
        np.testing.assert_array_equal(around.reshape(-1, 4), np.reshape(theirs, (-1, 4)))
        assert _mask_to_rle(torch.tensor(np.array(masks, bool).reshape(-1, *shape))) == expected
        kept += len(masks)
    assert kept > 2
