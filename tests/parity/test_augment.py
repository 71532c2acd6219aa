"""Moments of 10,000 augmented images against timm's and torchvision's transforms.

`pytest -m parity -s tests/parity/test_augment.py` prints the table of docs/data.md.
"""

import random

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from vit_jax.data.augment import parse_augmentation
from vit_jax.inputs import ImageInputs

pytestmark = pytest.mark.parity

SAMPLES, SIZE = 10_000, 48
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUTS = ImageInputs(size=(SIZE, SIZE), mean=MEAN, std=STD)
PHOTO = Image.fromarray(load_sample_image("flower.jpg")).resize((96, 64), Image.Resampling.BOX)
SQUARE = PHOTO.resize((SIZE, SIZE), Image.Resampling.BOX)
# Tolerance in levels: the resizing filters differ.
LEVELS = {"random_resized_crop": 1.5}


def statistics(image):
    """Mean levels of 4 x 4 tiles of each channel, and its deviation and extremes."""
    pixels = np.asarray(image, np.float64)
    tiles = pixels.reshape(4, SIZE // 4, 4, SIZE // 4, 3).mean((1, 3)).ravel()
    return np.concatenate([tiles, pixels.std((0, 1)), pixels.min((0, 1)), pixels.max((0, 1))])


def their_transform(name):
    import torch
    from timm.data import auto_augment
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision import transforms

    fill = {"img_mean": (124, 116, 104)}

    def erase(image):
        normal = torch.tensor(((np.asarray(image) / 255 - MEAN) / STD).transpose(2, 0, 1))
        RandomErasing(0.25, mode="pixel", device="cpu")(normal)
        return np.clip((normal.numpy().transpose(1, 2, 0) * STD + MEAN) * 255, 0, 255)

    return {
        "random_resized_crop": RandomResizedCropAndInterpolation(SIZE, interpolation="bicubic"),
        "flip": transforms.RandomHorizontalFlip(),
        "color_jitter(0.3, 0.3, 0.3, 0.1)": transforms.ColorJitter(0.3, 0.3, 0.3, 0.1),
        "randaugment(2, 9, mstd=0.5, inc=True)": auto_augment.rand_augment_transform(
            "rand-m9-mstd0.5-inc1", dict(fill)
        ),
        "randaugment(2, 10, probability=1.0)": auto_augment.rand_augment_transform(
            "rand-m10-p1", dict(fill)
        ),
        "autoaugment": auto_augment.auto_augment_transform("original", dict(fill)),
        "three_augment": auto_augment.auto_augment_transform("3a", dict(fill)),
        "random_erasing(0.25)": erase,
    }[name]


@pytest.fixture
def posterize_to_black(monkeypatch):
    """Pillow 13 refuses to keep no bits; timm expects a black image."""
    posterize = ImageOps.posterize
    monkeypatch.setattr(
        ImageOps,
        "posterize",
        lambda image, bits: posterize(image, bits) if bits else image.point([0] * 768),
    )


@pytest.mark.parametrize(
    "name",
    [
        "random_resized_crop",
        "flip",
        "color_jitter(0.3, 0.3, 0.3, 0.1)",
        "randaugment(2, 9, mstd=0.5, inc=True)",
        "randaugment(2, 10, probability=1.0)",
        "autoaugment",
        "three_augment",
        "random_erasing(0.25)",
    ],
)
def test_moments(name, posterize_to_black):
    """Mean and deviation of every statistic agree within five standard errors and a level."""
    import torch

    source = PHOTO if name == "random_resized_crop" else SQUARE
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - timm draws from it
    torch.manual_seed(0)
    theirs_of, ours_of = their_transform(name), parse_augmentation(name, INPUTS)
    theirs = np.asarray([statistics(theirs_of(source)) for _ in range(SAMPLES)])
    rng, pixels = np.random.default_rng(0), np.asarray(source)
    ours = np.asarray([statistics(ours_of(pixels, rng)) for _ in range(SAMPLES)])

    level = LEVELS.get(name, 0.5)
    means = ours.mean(0) - theirs.mean(0)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / SAMPLES)
    squares = (ours - ours.mean(0)) ** 2, (theirs - theirs.mean(0)) ** 2
    spread = ours.std(0) - theirs.std(0)
    # Standard error of the deviation, by the delta method.
    spread_error = np.sqrt(sum(s.var(0) for s in squares) / SAMPLES) / (2 * theirs.std(0) + 1e-9)
    print(
        f"\n| `{name}` | {np.abs(means).max():.2f} | {error[np.abs(means).argmax()]:.2f} "
        f"| {np.abs(spread).max():.2f} | {spread_error[np.abs(spread).argmax()]:.2f} |"
    )
    assert (np.abs(means) < 5 * error + level).all()
    assert (np.abs(spread) < 5 * spread_error + level).all()
