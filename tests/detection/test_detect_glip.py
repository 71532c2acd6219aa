"""`vit_jax.detect` with GLIP: scores with centerness, suppression, largest number of boxes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.fixtures.tokenizers.wordpiece import make_wordpiece
from tests.models.test_glip import CONFIG
from vit_jax.detection.runners import runner_of
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.pretrained.model import PretrainedModel

SIDE = 64
NAMES = ["cat", "red car"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A small GLIP with random weights, which map to no checkpoint."""
    path = tmp_path_factory.mktemp("glip") / "tokenizer.json"
    make_wordpiece().save(str(path))
    text = dataclasses.replace(CONFIG.text, vocab_size=1030, context_length=12)
    spec = model_spec("glip_tiny")
    spec = dataclasses.replace(
        spec,
        architecture=dataclasses.replace(CONFIG, text=text),
        inputs=dataclasses.replace(spec.inputs, size=(SIDE, SIDE), shortest_edge=SIDE // 2),
        tokenizer=f"huggingface:{path}?start=[CLS]&end=[SEP]&pad=[PAD]",
    )
    definition = ModelDef(spec.architecture)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), definition.shapes()
    )
    return PretrainedModel(spec, definition, params)


def test_scores_suppression_and_limit(detector, monkeypatch):
    """1,200 boxes in a row, every second one on the one before; probabilities with centerness."""
    count = 1200
    tokens = detector.tokenize("cat. red car.")[0]
    # [CLS] cat . red car . [SEP]
    products = np.random.default_rng(0).random((count, len(tokens)), np.float32)
    left = np.arange(count, dtype=np.float32) // 2
    boxes = np.stack([left, 0 * left, left + 1, 0 * left + count], axis=1) / count

    def network(params, packed, sizes, tokens):
        return boxes[None], products[None, :, : len(tokens)]

    monkeypatch.setattr(runner_of(detector), "_detect", network)
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    scores = np.sqrt(np.stack([products[:, 1], products[:, 3:5].mean(axis=1)], axis=1))
    order = np.argsort(-scores.max(axis=1))
    found = vit_jax.detect(detector, image, NAMES, threshold=0.0, nms_threshold=1.0)
    np.testing.assert_allclose(found.scores, scores.max(axis=1)[order[:1000]], rtol=1e-6)
    np.testing.assert_array_equal(found.labels, scores.argmax(axis=1)[order[:1000]])
    expected = []
    for i in order[:1000]:
        pair = i ^ 1
        if not any(j == pair and scores[i].argmax() == scores[j].argmax() for j in expected):
            expected.append(i)
    found = vit_jax.detect(detector, image, NAMES, threshold=0.0)
    assert len(expected) < 1000
    np.testing.assert_allclose(found.scores, scores.max(axis=1)[expected], rtol=1e-6)


@pytest.mark.release
def test_the_network(detector):
    """Boxes and scores of the model's own arrays, computed in NumPy."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (SIDE // 2, SIDE, 3), dtype=np.uint8)
    found = vit_jax.detect(detector, image, NAMES, threshold=0.0, nms_threshold=1.0)
    tokens = jnp.asarray(detector.tokenize(["cat. red car."]))
    pixels = detector.spec.inputs.normalize(jnp.asarray(detector.spec.inputs(image)[None]))
    module = detector.definition.bind(detector.params)
    sizes = jnp.asarray([(SIDE // 2, SIDE)])
    arrays = {k: np.float64(x[0]) for k, x in module(pixels, tokens, sizes=sizes).items()}
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    means = [sigmoid(arrays["logits"][:, part]).mean(axis=1) for part in (slice(1, 2), slice(3, 5))]
    scores = np.sqrt(np.stack(means, axis=1) * sigmoid(arrays["centerness"])[:, None])
    order = np.argsort(-scores.max(axis=1), kind="stable")
    np.testing.assert_allclose(found.scores, scores.max(axis=1)[order], rtol=1e-4)
    center, side = np.split(arrays["boxes"][order], 2, axis=1)
    corners = np.concatenate([center - side / 2, center + side / 2], axis=1)
    corners *= (SIDE, SIDE // 2, SIDE, SIDE // 2)
    np.testing.assert_allclose(found.boxes[:20], corners[:20], rtol=1e-3, atol=1e-2)
