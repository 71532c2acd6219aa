"""`vit_jax.generate_masks` against transformers' pipeline "mask-generation", and its errors."""

import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from vit_jax.errors import UserError
from vit_jax.segmentation.crops import crop_windows, point_grid
from vit_jax.segmentation.runners import prompt_runner_of
from vit_jax.segmentation.sam_runner import EmbeddedImage

OPTIONS = {"points_per_side": 3, "crop_layers": 1}


@pytest.fixture
def recorded(sam, reference, monkeypatch):
    """The points that are asked for; the answers are the logits of the fixture."""
    runner, points = prompt_runner_of(sam), []

    def embed(model, pixels, key=""):
        return EmbeddedImage(jnp.zeros(()), *pixels.shape[:2], key)

    def predict(model, image, prompts, *, multimask, batch_size):
        assert multimask
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            first = sum(len(each) for each in points)
            points.append(part.points[:, 0])
            rows = slice(first, first + len(part))
            yield reference["generated_logits"][rows], reference["generated_quality"][rows]

    monkeypatch.setattr(runner, "embed", embed)
    monkeypatch.setattr(runner, "predict", predict)
    return points


@pytest.mark.parametrize("batch_size", [4, 64])
def test_masks_equal_transformers(batch_size, sam, reference, recorded):
    found = vit_jax.generate_masks(
        sam, reference["generated_image"], **OPTIONS, iou_threshold=0.7, stability_threshold=0.8,
        batch_size=batch_size,
    )  # fmt: skip
    np.testing.assert_allclose(
        np.concatenate(recorded), reference["generated_points"], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(found.scores, reference["generated_scores"])
    np.testing.assert_array_equal(found.masks, reference["generated_masks"])
    # Boxes end at their last pixel there.
    inclusive = found.boxes - (0, 0, 1, 1)
    np.testing.assert_array_equal(inclusive, reference["generated_boxes"])
    assert found.logits.shape == (len(found.scores), 0, 0)


def test_no_mask_is_left(sam, reference, recorded):
    image = reference["generated_image"]
    found = vit_jax.generate_masks(sam, [image], **OPTIONS, iou_threshold=1.0)
    assert [each.masks.shape for each in found] == [(0, 60, 84)]
    assert found[0].boxes.shape == (0, 4)


def test_a_run_with_the_model(sam, reference):
    """Without thresholds every point has its three masks, the same as one by one."""
    image = reference["28x20_image"]
    found = vit_jax.generate_masks(
        sam, image, points_per_side=2, iou_threshold=0.0, stability_threshold=0.0,
        nms_threshold=1.0, batch_size=2,
    )  # fmt: skip
    points = point_grid(2) * (20, 28)
    every = vit_jax.segment(sam, image, points=points, multimask=True, batch_size=2)
    order = np.argsort(-every.scores, kind="stable")
    np.testing.assert_allclose(found.scores, every.scores[order], rtol=1e-4)
    assert found.masks.shape == (12, 28, 20)
    assert (found.masks == every.masks[order]).mean() > 0.999


def test_grids_and_parts():
    np.testing.assert_allclose(
        point_grid(2), [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    )
    found = crop_windows(60, 84, 2, 0.25)
    assert found[0] == (0, (0, 0, 60, 84))
    assert [layer for layer, _ in found] == [0] + [1] * 4 + [2] * 16
    # Parts of 50 x 38 px share 15 px: columns come first.
    assert [window for _, window in found[1:5]] == [
        (0, 0, 38, 50), (23, 0, 37, 50), (0, 35, 38, 49), (23, 35, 37, 49),
    ]  # fmt: skip
    for layer in (1, 2):
        covered = np.zeros((60, 84), bool)
        for number, (top, left, height, width) in found:
            if number == layer:
                covered[top : top + height, left : left + width] = True
        assert covered.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": 0}, "points_per_side=0.*expected at least one point per side"),
        ({"crop_layers": 2, "points_per_side": 3, "crop_points_divisor": 2}, "at least one point"),
        ({"crop_layers": -1}, "crop_layers=-1"),
        ({"crop_points_divisor": 0}, "crop_points_divisor=0"),
        ({"crop_overlap": 1.0}, "crop_overlap=1.0"),
        ({"iou_threshold": 1.5}, "iou_threshold=1.5: expected a fraction"),
        ({"nms_threshold": -0.1}, "nms_threshold=-0.1"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_errors(options, message, sam, reference):
    with pytest.raises(UserError, match=message):
        vit_jax.generate_masks(sam, reference["28x20_image"], **options)
