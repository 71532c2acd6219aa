"""Several crops of an image and masks of blocks."""

import numpy as np
import pytest

from vit_jax.data.augment.block_masks import block_mask
from vit_jax.data.batches import abstract_batch, batch_transform
from vit_jax.data.crops import FIELDS, Crops, CropsConfig
from vit_jax.data.detection import DetectionConfig
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

INPUTS = ImageInputs(size=(16, 16))
# The colour of a pixel is its position.
RAMP = np.stack([*np.meshgrid(np.arange(64) * 4, np.arange(64) * 4), np.zeros((64, 64))], -1)
SOURCE = open_source("digits:test[:1]")
IMAGE = {"image": RAMP.astype(np.uint8)}
GLOBAL = "random_resized_crop(scale=(0.32, 1.0))"


def transform(fields=FIELDS, augment=GLOBAL, **keys):
    keys = {"local": "random_resized_crop(scale=(0.05, 0.32))", "local_size": 8, **keys}
    crops = Crops(CropsConfig(num_local=3, **keys), (8, 8))
    return batch_transform(fields, SOURCE, augment, INPUTS, tokenizer=None, crops=crops), crops


def rng(seed=0):
    return np.random.default_rng(seed)


def areas(crops):
    """Fraction of the image that each crop shows, from its smallest and largest colour."""
    extent = crops.max(axis=(1, 2))[:, :2].astype(int) - crops.min(axis=(1, 2))[:, :2]
    return (extent / 252).prod(-1)


def test_shapes_and_areas_of_crops():
    read, crops = transform()
    batch = [read(IMAGE, rng(seed)) for seed in range(40)]
    planned = abstract_batch(FIELDS, 7, INPUTS, 0, DetectionConfig(), crops)
    for name, x in planned.items():
        assert (7, *batch[0][name].shape) == x.shape
        assert batch[0][name].dtype == x.dtype
    large = areas(np.concatenate([b["global_crops"].reshape(2, 16, 16, 3) for b in batch]))
    small = areas(np.concatenate([b["local_crops"].reshape(3, 8, 8, 3) for b in batch]))
    # The centres of the outer pixels of a crop lie within it.
    assert 0.32 * (15 / 16) ** 2 - 0.05 < large.min() < 0.45
    assert large.max() > 0.8
    assert 0.02 < small.min() < 0.1 < 0.2 < small.max() < 0.33


def test_crops_of_a_gram_teacher_show_the_same_parts():
    """At twice the size and without the changes of colours, whose numbers come after."""
    colours = f"{GLOBAL}|flip|solarize(1.0, threshold=0)"
    keys = {"first": colours, "gram_size": 32, "gram": f"{GLOBAL}|flip"}
    read, crops = transform(augment="", **keys)
    found, plain = read(IMAGE, rng()), transform(FIELDS[:3], augment="", **keys)[0](IMAGE, rng())
    for name in FIELDS[:3]:
        np.testing.assert_array_equal(found[name], plain[name])
    assert found["gram_crops"].shape == crops.shapes(INPUTS)["gram_crops"][0]
    small = found["global_crops"].reshape(2, 16, 16, 3).astype(float)
    large = found["gram_crops"].reshape(2, 32, 32, 3).astype(float)
    halved = large.reshape(2, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(halved - (255 - small)).max() < 8


def test_crops_beside_the_image_and_its_caption():
    fields = ("image", "label", *FIELDS[:3])
    read, crops = transform(fields, "resize", first=GLOBAL, num_global=1, mask_ratio=(0.5, 0.5))
    example = {**IMAGE, "label": 3}
    found = read(example, rng())
    planned = abstract_batch(fields, 1, INPUTS, 0, DetectionConfig(), crops)
    assert {k: (1, *x.shape) for k, x in found.items()} == {k: x.shape for k, x in planned.items()}
    whole = batch_transform(("image",), SOURCE, "resize", INPUTS, tokenizer=None)(example, rng())
    np.testing.assert_array_equal(found["image"], whole["image"])
    assert (found["image"] != found["global_crops"]).any()
    assert 1 <= found["patch_mask"].sum() <= crops.max_masked == 32


def test_crops_depend_on_the_seed_alone():
    read, _ = transform()
    one, again, other = read(IMAGE, rng(3)), read(IMAGE, rng(3)), read(IMAGE, rng(4))
    for name in FIELDS:
        np.testing.assert_array_equal(one[name], again[name])
        assert (one[name] != other[name]).any()


def test_the_second_crop_has_its_own_augmentation():
    read, _ = transform(second="resize|solarize(1.0, threshold=0)", augment="resize")
    first, second = read(IMAGE, rng())["global_crops"].reshape(2, 16, 16, 3)
    np.testing.assert_array_equal(second, 255 - first)
    read, _ = transform(augment="resize")
    first, second = read(IMAGE, rng())["global_crops"].reshape(2, 16, 16, 3)
    np.testing.assert_array_equal(first, second)


def test_without_local_crops_and_masks():
    read, _ = transform(("global_crops",))
    assert list(read(IMAGE, rng())) == ["global_crops"]


def test_one_of_two_crops_is_masked():
    read, crops = transform(mask_ratio=(0.1, 0.5))
    masks = np.stack([read(IMAGE, rng(seed))["patch_mask"] for seed in range(200)])
    counts = masks.sum(-1)
    assert (counts.min(1) == 0).all()
    assert (counts.max(1) >= 1).all()
    assert counts.max() <= crops.max_masked == 32
    assert 0.4 < (counts[:, 0] > 0).mean() < 0.6
    # The mean ratio is 0.3; blocks that do not fit leave some masks smaller.
    assert 0.25 < counts.max(1).mean() / 64 <= 0.31


@pytest.mark.parametrize("count", [1, 3, 20, 63])
def test_masks_are_unions_of_blocks(count):
    generator = rng()
    for _ in range(30):
        mask = block_mask(9, 7, count, generator)
        assert 1 <= mask.sum() <= count
    # Each masked patch has a masked neighbour: blocks of at least four patches are no points.
    if count >= 20:
        padded = np.pad(mask, 1)
        neighbours = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        assert neighbours[mask].mean() > 0.9


def test_colours_change_with_their_probability():
    image = rng().integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for name in (
        "grayscale(0.3)",
        "solarize(0.3)",
        "gaussian_blur(0.3)",
        "color_jitter(0.4, 0.4, 0.2, 0.1, probability=0.3)",
    ):
        augment = transform(augment=name)[0].globals[0]
        generator = rng(1)
        changed = [(augment(image, generator) != image).any() for _ in range(300)]
        assert 0.2 < np.mean(changed) < 0.4, name
    grey = transform(augment="grayscale(1.0)")[0].globals[0](image, rng())
    assert (grey == grey[..., :1]).all()
    blurred = transform(augment="gaussian_blur(1.0)")[0].globals[0](image, rng())
    assert blurred.std() < image.std()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mask_ratio": (0.0, 0.5)}, r"mask_ratio=\(0.0, 0.5\): expected a range within \(0, 1\]"),
        ({"num_local": -1}, "expected at least 0 crops"),
        ({"num_global": 3}, "num_global=3: expected 1 or 2"),
        ({"gram": "flip"}, "gram_size=0: expected a size in px"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(UserError, match=message):
        CropsConfig(**keys)


def test_crops_for_an_objective_that_reads_one_image():
    crops = Crops(CropsConfig(num_local=3), (8, 8))
    with pytest.raises(UserError, match=r"config\.data\.crops applies to objectives that read sev"):
        batch_transform(("image",), SOURCE, "", INPUTS, tokenizer=None, crops=crops)
