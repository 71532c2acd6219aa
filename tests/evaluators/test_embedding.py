"""Embeddings: padding, devices, probabilities, and embeddings that are kept on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.evaluators.conftest import CountedSource
from tests.helpers import tiny_classifier
from vit_jax.config import model_spec
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.evaluators import cache
from vit_jax.evaluators.batching import padded_batches
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.suite import Suite
from vit_jax.models.definition import ModelDef
from vit_jax.parallel.mesh import make_mesh


def test_padded_batches_are_in_order():
    read = lambda row: {"x": np.array([row])}  # noqa: E731
    batches = list(padded_batches(read, start=3, stop=10, batch_size=4, part=range(4)))
    assert [batch["x"][:, 0].tolist() for batch in batches] == [[3, 4, 5, 6], [7, 8, 9, 9]]


def test_images_equal_the_model_called_directly(make_embedder):
    """359 images are not a multiple of the batch size: padding is removed."""
    embedder, params = make_embedder()
    source = open_source("digits:test")
    inputs, model = embedder.inputs, embedder.model.bind(params)
    # The definition: ((x / 255) - mean) / std in NumPy, one batch of all images.
    pixels = np.stack([inputs(source[i]["image"]) for i in range(len(source))]) / 255.0
    images = jnp.asarray((pixels - np.array(inputs.mean)) / np.array(inputs.std), jnp.float32)
    expected = np.array(model.encode_image(images))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = embedder.image_embeddings(params, source)
    assert found.shape == (359, 16)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    features = np.asarray(model.image.encode_image(images))
    np.testing.assert_allclose(embedder.image_features(params, source), features, atol=1e-5)


def test_class_embeddings_average_normalized_templates(make_embedder):
    embedder, params = make_embedder()
    names, templates = ["cat", "dog"], ("{}", "a photo of a {}")
    expected = []
    for name in names:
        tokens = embedder.tokenize([t.format(name) for t in templates])
        vectors = np.asarray(embedder.model.bind(params).encode_text(jnp.asarray(tokens)))
        mean = np.mean(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), axis=0)
        expected.append(mean / np.linalg.norm(mean))
    found = embedder.class_embeddings(params, names, templates)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("bias", [None, -3.0])
def test_probabilities(make_embedder, bias):
    """Softmax for CLIP; with a logit bias, independent probabilities of the pairs."""
    changes = {} if bias is None else {"model.init_logit_bias": bias}
    embedder, params = make_embedder(**changes)
    cosines = np.array([[0.1, -0.2, 0.3]], np.float32)
    logits = np.exp(float(params["logit_scale"])) * cosines
    expected = np.exp(logits) / np.exp(logits).sum()
    if bias is not None:
        expected = 1 / (1 + np.exp(-(logits + bias)))
    np.testing.assert_allclose(embedder.probabilities(params, cosines), expected, rtol=1e-5)


def test_embeddings_of_one_round_are_shared(make_embedder):
    embedder, params = make_embedder()
    source = CountedSource(open_source("digits:test[:64]"))
    for _ in range(2):
        embedder.image_embeddings(params, source)
    assert source.reads == 64
    embedder.forget()
    embedder.image_embeddings(params, source)
    assert source.reads == 128


def test_interrupted_embeddings_continue_from_disk(make_embedder, tmp_path):
    folder = tmp_path / "cache"
    embedder, params = make_embedder(cache=folder)
    digits = open_source("digits:test")
    expected = np.array(make_embedder()[0].image_embeddings(params, digits))
    fingerprint_reads = 64

    with pytest.raises(KeyboardInterrupt):  # in the fourth batch of six
        embedder.image_embeddings(params, CountedSource(digits, fingerprint_reads + 200))

    source = CountedSource(digits)
    embedder, params = make_embedder(1, 100, cache=folder)  # other devices, other batches
    found = embedder.image_embeddings(params, source)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert source.reads - fingerprint_reads == 200  # rows 192 to 358 in batches of 100, padded

    source = CountedSource(digits)
    embedder, params = make_embedder(cache=folder)
    found = embedder.image_embeddings(params, source)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert source.reads == fingerprint_reads


def test_other_preprocessing_and_functions_have_other_files(make_embedder, tmp_path):
    folder, source = tmp_path / "cache", open_source("digits:test[:64]")
    for changes in ({}, {"model.inputs.interpolation": "bilinear"}):
        embedder, params = make_embedder(cache=folder, **changes)
        embedder.image_embeddings(params, source)
        embedder.image_features(params, source)
    assert len(list(folder.glob("*.npy"))) == 4


def test_fingerprints_of_weights(make_embedder):
    """Independent of the sharding; any changed value and any other order changes them."""
    _, params = make_embedder()
    name = cache.weights_fingerprint(params)
    whole = jax.sharding.NamedSharding(make_mesh(8), jax.sharding.PartitionSpec())
    assert cache.weights_fingerprint(jax.device_put(params, whole)) == name
    changed = jax.tree.map(jnp.copy, params)
    kernel = changed["image"]["patch_embed"]["kernel"]
    first, last = (0,) * kernel.ndim, (-1,) * kernel.ndim
    for other in (kernel.at[first].add(1e-7), kernel.at[last].add(1e-7), kernel[..., ::-1]):
        changed["image"]["patch_embed"]["kernel"] = other
        assert cache.weights_fingerprint(changed) != name


def test_fingerprints_of_sources(tmp_path):
    digits = cache.source_fingerprint(open_source("digits:test"))
    assert digits == cache.source_fingerprint(open_source("digits:test"))
    assert digits != cache.source_fingerprint(open_source("digits:test[:300]"))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(70):  # more images than the fingerprint reads
            Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / name / f"{i}.png")
    before = cache.source_fingerprint(open_source(f"folder:{tmp_path}"))
    Image.new("RGB", (4, 4), (200, 0, 0)).save(tmp_path / "cat" / "5.png")
    assert cache.source_fingerprint(open_source(f"folder:{tmp_path}")) != before


def test_embeddings_that_are_not_finite_are_refused(make_embedder):
    embedder, params = make_embedder()
    params["image"]["patch_embed"]["kernel"] *= jnp.nan
    with pytest.raises(UserError, match=r"images of row 0 .* are NaN or infinite"):
        embedder.image_embeddings(params, open_source("digits:test"))


def test_texts_need_a_tokenizer(make_embedder):
    embedder, params = make_embedder()
    embedder.tokenizer = None
    with pytest.raises(UserError, match="the tokenizer of the model is missing"):
        embedder.text_embeddings(params, ["a cat"])


@pytest.mark.parametrize("evaluator", ["zeroshot", "retrieval"])
def test_evaluators_of_texts_refuse_a_classifier_before_they_read_data(evaluator):
    spec = model_spec(tiny_classifier())
    embedder = Embedder(
        ModelDef(spec.architecture), inputs=spec.inputs, mesh=make_mesh(), batch_size=8
    )
    with pytest.raises(UserError, match=r"has no text encoder; .* evaluator 'classification'"):
        Suite({evaluator: {"x": {"data": "folder:absent"}}}, embedder)


def test_a_function_of_ones_own(make_embedder):
    embedder, params = make_embedder()
    source = open_source("digits:test[:10]")
    brightness = embedder.apply(
        "brightness", lambda model, images: images.mean(axis=(1, 2, 3))[:, None], params, source
    )
    pixels = np.stack([embedder.inputs(source[i]["image"]) for i in range(10)])
    expected = np.asarray(embedder.inputs.normalize(pixels)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness[:, 0], expected, atol=1e-5)
