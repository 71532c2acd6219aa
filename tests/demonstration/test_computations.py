"""What the tabs of the demo compute, without a browser."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.demonstration import drawings, maps
from vit_jax.demonstration import gallery as gallery_lib
from vit_jax.demonstration.gallery import open_gallery
from vit_jax.demonstration.subject import (
    Subject,
    label_probabilities,
    open_subject,
    split_words,
)
from vit_jax.errors import UserError
from vit_jax.models.mae.model import patchify
from vit_jax.objectives.masked_reconstruction import normalize_patches
from vit_jax.pretrained.model import create_model
from vit_jax.segmentation.results import Segmentation
from vit_jax.segmentation.sam_runner import EmbeddedImage

TOWER = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32}
IMAGE = {**TOWER, "image_size": 16, "patch_size": 4, "patch_dropout": 0.0}


@pytest.fixture(scope="module")
def subject():
    """A small CLIP with random weights."""
    text = {**TOWER, "vocab_size": 49408, "context_length": 16}
    model = create_model("clip_vit_emoji", image=IMAGE, text=text, embed_dim=8, tokenizer="clip")
    return Subject(model, "clip", templates=("{}", "a drawing of a {}"))


@pytest.fixture(scope="module")
def autoencoder():
    """A small masked autoencoder with random weights."""
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    model = create_model("mae_vit_b16", image=IMAGE, decoder_mlp_dim=32, **decoder)
    return Subject(model, "mae")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three images, one of them in a sub-folder, and a truncated one."""
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    (root / "inner").mkdir(parents=True)
    for name in ("a.png", "b.png", "inner/c.png"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(root / name)
    (root / "broken.png").write_bytes((root / "a.png").read_bytes()[:100])
    return root


def photo(seed=3, size=16):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def test_tabs_of_models(subject, autoencoder):
    assert (subject.reads_words, subject.encodes_images, subject.attends) == (True, True, True)
    assert not (subject.reconstructs)
    assert not (subject.detects)
    assert not (subject.segments_words)
    assert (autoencoder.reads_words, autoencoder.reconstructs) == (False, True)
    assert autoencoder.attends


def test_probabilities_of_labels(subject):
    image, labels = photo(), ["a cat", "a dog", "a car"]
    found = label_probabilities(subject, image, labels)
    assert list(found) == labels
    model = subject.model
    texts = np.stack([
        np.asarray(model.encode_text(model.tokenize([t.format(x) for t in subject.templates])))
        for x in labels
    ])  # fmt: skip
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    texts = texts.mean(axis=1)
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    embedding = np.asarray(model.encode_image(model.preprocess(image)[None]), np.float64)[0]
    scale = float(np.exp(model.params["logit_scale"]))
    logits = scale * texts @ (embedding / np.linalg.norm(embedding))
    expected = np.exp(logits - logits.max())
    np.testing.assert_allclose(list(found.values()), expected / expected.sum(), atol=1e-4)
    with pytest.raises(UserError, match="no labels"):
        label_probabilities(subject, image, [])


def test_words_of_a_user():
    assert split_words(" a cat, a dog\na cat,, a car,") == ["a cat", "a dog", "a car"]


def test_search_in_a_folder(subject, folder, monkeypatch):
    gallery = open_gallery(subject, str(folder))
    assert sorted(gallery.paths) == [str(folder / n) for n in ("a.png", "b.png", "inner/c.png")]
    assert gallery.broken == [str(folder / "broken.png")]
    query = subject.image_embedding(str(folder / "b.png"))
    (first, cosine), *others = gallery.search(query, count=2)
    assert first == str(folder / "b.png")
    assert cosine == pytest.approx(1, abs=1e-5)
    assert len(others) == 1
    assert others[0][1] < cosine
    # A further call reads new images alone.
    Image.fromarray(photo()).save(folder / "new.png")
    embed, read = gallery_lib._embed, []
    monkeypatch.setattr(gallery_lib, "_embed", lambda s, p: read.extend(p) or embed(s, p))
    again = open_gallery(subject, str(folder))
    assert read == [str(folder / "new.png")]
    assert len(again.paths) == 4
    np.testing.assert_array_equal(
        again.embeddings[again.paths.index(first)], gallery.embeddings[gallery.paths.index(first)]
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "expected a folder with images; found none"),
        ({}, "expected a folder with images; found none"),
        ({"x.png": b"no image"}, "none of 1 images can be read"),
    ],
)
def test_folders_without_images(subject, tmp_path, monkeypatch, files, message):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    if files is not None:
        root.mkdir()
        for name, content in files.items():
            (root / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_gallery(subject, str(root))


def test_attention_of_a_patch(subject):
    seen = subject.input_pixels(photo(size=40))
    assert seen.shape == (16, 16, 3)
    for rollout in (False, True):
        heat = maps.patch_attention(subject, seen, 1, 2, rollout=rollout)
        assert heat.shape == (4, 4)
        assert heat.sum() == pytest.approx(1, abs=1e-5)  # there is no class token
    assert heat.argmax() == 1 * 4 + 2  # rollout: the residual connection
    with pytest.raises(UserError, match="patch 4, 0: expected one of 4 rows"):
        maps.patch_attention(subject, seen, 4, 0)
    drawn = maps.overlay(seen, heat, (1, 2))
    assert drawn.size == (448, 448)
    assert drawn.getpixel((2 * 112 + 1, 1 * 112 + 50)) == (0, 200, 255)
    assert maps.patch_at(subject, drawn.size, 2 * 112 + 1, 112 + 50) == (1, 2)
    assert maps.patch_at(subject, drawn.size, 448, 448) == (3, 3)


def test_relevance_of_a_word(subject):
    seen = subject.input_pixels(photo())
    cat, dog = (maps.word_relevance(subject, seen, word) for word in ("a cat", "a dog"))
    assert cat.shape == (4, 4)
    assert (cat >= 0).all()
    assert (cat > 0).sum() > 0
    assert not np.allclose(cat, dog)
    with pytest.raises(UserError, match="no word"):
        maps.word_relevance(subject, seen, "  ")


def test_reconstruction(autoencoder, monkeypatch):
    seen = autoencoder.input_pixels(photo())
    visible, painted = maps.reconstruction(autoencoder, seen, 0.75)
    hidden = (visible.reshape(4, 4, 4, 4, 3) == 128).all(axis=(1, 3, 4))
    assert hidden.sum() == 12
    shown = ~np.repeat(np.repeat(hidden, 4, 0), 4, 1)
    np.testing.assert_array_equal(painted[shown], seen[shown])
    assert not np.array_equal(painted, seen)
    other, _ = maps.reconstruction(autoencoder, seen, 0.75, seed=1)
    assert not np.array_equal(visible, other)

    def perfect(method, images, noise, *, mask_ratio):
        """Predicts what training asks for."""
        target = normalize_patches(patchify(images, 4))
        return target, jnp.ones(target.shape[:2])

    monkeypatch.setattr(autoencoder.model, "apply", perfect)
    _, painted = maps.reconstruction(autoencoder, seen, 0.75)
    np.testing.assert_allclose(painted.astype(int), seen.astype(int), atol=1)


def test_masks_of_clicks(autoencoder, monkeypatch):
    """The points of all clicks are one prompt; its mask and its points are drawn."""
    mask = np.zeros((1, 40, 40), bool)
    mask[0, :20] = True
    asked = []

    def segment(model, features, *, points, labels):
        asked.append((points, labels))
        scores, rows = np.array([0.75], np.float32), np.zeros((1, 4, 4), np.float32)
        return Segmentation("", 40, 40, mask, scores, np.zeros(1, np.int32), [""], rows)

    monkeypatch.setattr(drawings, "segment", segment)
    pixels = np.full((40, 40, 3), 200, np.uint8)
    features = EmbeddedImage(jnp.zeros((1, 1, 1, 1)), 40, 40)
    clicks = [(5, 10, 1), (30, 35, 0)]
    drawn, text = drawings.masks_by_clicks(autoencoder, pixels, features, clicks)
    assert asked == [([[(5, 10), (30, 35)]], [[1, 0]])]
    assert text == "50.0% of the image; predicted IoU 0.75."
    assert (pixels == 200).all()
    np.testing.assert_array_equal(drawn[10, 5], (0, 200, 0))
    np.testing.assert_array_equal(drawn[35, 30], (220, 0, 0))
    np.testing.assert_array_equal(drawn[0, 39], (227, 170, 100))
    np.testing.assert_array_equal(drawn[39, 0], (200, 200, 200))


def test_weights_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        open_subject(str(tmp_path / "nothing"), max_image_pixels=0)
