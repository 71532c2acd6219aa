"""Masks of words against transformers and torch, on images of odd sizes, and errors."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.weights.reference import DATA, split_reference
from vit_jax.errors import UserError
from vit_jax.segmentation.runners import word_runner_of

# As in tests/fixtures/generators/make_word_masks.py.
SHAPES, SIDE = [(37, 53), (91, 40)], 24
PROMPTS = {"cat": [5], "red car": [7, 8, 9], "two dogs": [11, 3]}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Words:
    """A tokenizer of the small text tower, which has a context of nine tokens."""

    context_length = 9

    def lengths(self, texts):
        return [len(text.split()) + 2 for text in texts]

    def __call__(self, texts):
        rows = [[*PROMPTS.get(text, [2 + len(text) % 40]), 49] for text in texts]
        return np.array([row + [0] * (9 - len(row)) for row in rows], np.int32)


def open_model(name, folder):
    """The small model of transformers in a folder as the library writes it."""
    path, _ = split_reference(f"transformers_{name}.safetensors", folder)
    path.rename(folder / "model.safetensors")
    shutil.copy(DATA / f"transformers_{name}.json", folder / "config.json")
    settings = {"size": {"height": SIDE, "width": SIDE}, "image_mean": MEAN, "image_std": STD}
    settings |= {"image_processor_type": "ViTImageProcessor", "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    model = vit_jax.create_model(weights=folder)
    model.__dict__["tokenize"] = Words()
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {n: open_model(n, tmp_path_factory.mktemp(n)) for n in ("clipseg", "clip")}


@pytest.fixture(scope="module")
def images():
    fixture = np.load(DATA / "detection_inputs.npz")
    return [fixture["image_{}x{}".format(*shape)] for shape in SHAPES]


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(DATA / "word_masks.npz"))


def test_masks_of_prompts(models, images, expected):
    """Pixel for pixel those of torch, by words and by an example image."""
    model, threshold = models["clipseg"], expected["threshold"].item()
    by_words = vit_jax.segment(model, images, list(PROMPTS), threshold=threshold)
    by_image = vit_jax.segment(model, images, query_image=images[0], threshold=threshold)
    for i, shape in enumerate(SHAPES):
        theirs = {key: expected[f"clipseg_{i}_{key}"] for key in ("masks", "scores", "logits")}
        masks = np.unpackbits(theirs["masks"], axis=-1, count=shape[1]).astype(bool)
        for found, rows, names in (
            (by_words[i], slice(3), list(PROMPTS)),
            (by_image[i], slice(3, 4), ["query image"]),
        ):
            assert (found.height, found.width, found.names) == (*shape, names)
            np.testing.assert_array_equal(found.masks, masks[rows])
            np.testing.assert_array_equal(found.labels, range(len(names)))
            np.testing.assert_allclose(found.scores, theirs["scores"][rows], rtol=1e-5)
            np.testing.assert_allclose(found.logits, theirs["logits"][rows], rtol=1e-4, atol=1e-5)


def test_pixels_by_the_most_similar_word(models, images, expected):
    found = vit_jax.segment(models["clip"], images, list(PROMPTS))
    for i, each in enumerate(found):
        labels = expected[f"clip_{i}_labels"]
        assert each.labels.tolist() == np.unique(labels).tolist() == [0, 1]
        for label, mask, logits in zip(each.labels, each.masks, each.logits, strict=True):
            np.testing.assert_array_equal(mask, labels == label)
            theirs = expected[f"clip_{i}_logits"][label]
            np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(each.scores, expected[f"clip_{i}_scores"], rtol=1e-5)
    sure = vit_jax.segment(models["clip"], images[0], list(PROMPTS), threshold=0.5)
    assert (sure.masks.sum(axis=(1, 2)) < found[0].masks[sure.labels].sum(axis=(1, 2))).all()


def test_no_match_repeated_names_and_a_folder(models, images, tmp_path):
    model = models["clipseg"]
    nothing = vit_jax.segment(model, images[0], ["cat"], threshold=1.0)
    assert nothing.masks.shape == (0, 37, 53)
    assert nothing.logits.shape == (0, SIDE, SIDE)
    assert (nothing.names, nothing.scores.shape) == ([], (0,))
    many = ["cat", "cat", *("a" * i for i in range(1, 17))]  # more prompts than one call has
    found = vit_jax.segment(model, images[0], many, threshold=0.0)
    assert found.labels.tolist() == [0, *range(2, 18)]
    one = vit_jax.segment(model, images[0], many[17:], threshold=0.0)
    np.testing.assert_allclose(found.logits[16], one.logits[0], rtol=1e-4, atol=1e-5)

    Image.fromarray(images[0]).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:100])
    [found] = vit_jax.segment(model, tmp_path, ["cat"], threshold=0.0)
    assert (found.key, found.masks.all()) == ("0.png", True)
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="none of 1 images can be read"):
        vit_jax.segment(model, tmp_path, ["cat"])


def test_errors(models, images):
    clip, clipseg = models["clip"], models["clipseg"]
    with pytest.raises(UserError, match="names is empty"):
        vit_jax.segment(clipseg, images[0], [])
    with pytest.raises(UserError, match="expected names or query_image; found both"):
        vit_jax.segment(clipseg, images[0], ["cat"], query_image=images[0])
    with pytest.raises(UserError, match=r"has 10 tokens: expected at most 9"):
        vit_jax.segment(clipseg, images[0], ["one two three four five six seven eight"])
    with pytest.raises(UserError, match=r"threshold=1.5: expected a fraction"):
        vit_jax.segment(clipseg, images[0], ["cat"], threshold=1.5)
    with pytest.raises(UserError, match="expected names; found a query_image, which CLIPSeg"):
        vit_jax.segment(clip, images[0], query_image=images[0])
    with pytest.raises(UserError, match="number 0"):
        vit_jax.segment(clipseg, b"nothing", ["cat"])
    with pytest.raises(UserError, match=r"'clipseg_rd64_refined'.*found str"):
        word_runner_of("clipseg")


@pytest.mark.release
@pytest.mark.parametrize(("side", "count"), [(7760, 3), (60, 500)])
def test_large_images_and_many_names(side, count, models):
    """60 megapixels, and 500 names: each pixel belongs to one name of a dual encoder."""
    block = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    image = block.repeat(side // 20, axis=0).repeat(side // 20, axis=1)
    names = [f"{'a' * (i % 37)} {i}" for i in range(count)]
    found = vit_jax.segment(models["clip"], image, names)
    assert found.masks.shape[1:] == (side, side)
    np.testing.assert_array_equal(found.masks.sum(axis=0), 1)
    every = vit_jax.segment(models["clipseg"], image, names, threshold=0.0)
    assert every.labels.tolist() == list(range(count))
    assert every.masks.all()
