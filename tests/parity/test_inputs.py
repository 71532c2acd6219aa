"""Preprocessing against timm's and torchvision's transforms: `pytest -m parity`."""

import numpy as np
import pytest
from PIL import Image

from vit_jax.inputs import ImageInputs
from vit_jax.models.registry import model_spec

pytestmark = pytest.mark.parity

SHAPES = [(1, 1), (1, 90), (90, 1), (375, 500), (500, 333), (60, 60), (233, 17), (41, 43)]
SIZES = [(32, 32), (224, 224), (24, 40), (40, 24), (48, 12)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.95, 0.9, 0.875])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crop_equals_timm(size, crop_fraction, interpolation):
    """The pixels before normalisation are equal, whatever the aspect ratios."""
    create_transform = pytest.importorskip("timm.data").create_transform
    transform = create_transform(
        (3, *size), interpolation=interpolation, crop_pct=crop_fraction, mean=(0,) * 3, std=(1,) * 3
    )
    inputs = ImageInputs(size=size, crop_fraction=crop_fraction, interpolation=interpolation)
    for shape in SHAPES:
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        theirs = transform(Image.fromarray(image)).numpy().transpose(1, 2, 0) * 255
        np.testing.assert_array_equal(inputs(image), np.rint(theirs))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_squash_equals_torchvision(size):
    transforms = pytest.importorskip("torchvision.transforms")
    mode = transforms.InterpolationMode.BICUBIC
    transform = transforms.Resize(size, interpolation=mode)
    for shape in SHAPES:
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        found = ImageInputs(size=size, resize="squash")(image)
        np.testing.assert_array_equal(found, transform(Image.fromarray(image)))


@pytest.mark.parametrize("side", [96, 224])
@pytest.mark.parametrize("resize", ["corner", "squash"])
def test_detectors_equal_transformers(resize, side):
    """Within the rounding to 8 bits; torchvision rounds bicubic filters once, Pillow twice."""
    pytest.importorskip("transformers")
    from tests.fixtures.generators.make_detection_inputs import processed, smooth_image

    fields = {"interpolation": "bilinear"} if resize == "corner" else {}
    inputs = ImageInputs(size=(side, side), resize=resize, **fields)
    for shape in SHAPES:
        image = smooth_image(*shape)
        error = np.abs(inputs(image) - processed(resize, image, side))
        assert error.max() <= (0.501 if resize == "corner" else 2.001)


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_clipseg_equals_its_processor(backend):
    """Images and image prompts at 352 px; torchvision differs by at most one level from Pillow."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from tests.fixtures.generators.make_detection_inputs import smooth_image

    inputs = model_spec("clipseg_rd64_refined").inputs
    kind = {"torchvision": transformers.ViTImageProcessor, "pil": ViTImageProcessorPil}[backend]
    resize = kind(size={"height": 352, "width": 352}, image_mean=inputs.mean, image_std=inputs.std)
    processor = transformers.CLIPSegProcessor(resize, transformers.CLIPTokenizer())
    for shape in SHAPES:
        image = smooth_image(*shape)
        given = processor(
            images=image,
            visual_prompt=image,
            return_tensors="pt",
            input_data_format="channels_last",
        )
        found = np.asarray(inputs.normalize(inputs(image)[None])[0])
        for key in ("pixel_values", "conditional_pixel_values"):
            theirs = np.asarray(given[key][0]).transpose(1, 2, 0)
            levels = np.abs(found - theirs) * np.float32(255) * np.float32(inputs.std)
            assert levels.max() <= (1.01 if backend == "torchvision" else 0.01), (
                shape,
                levels.max(),
            )
