"""Views of models: positions and reconstructions against NumPy, and how they are drawn."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import helpers
from vit_jax.data.sources import open_source
from vit_jax.evaluators import predictions
from vit_jax.experiment import build
from vit_jax.models.mae.drawing import unpatchify
from vit_jax.models.mae.model import patchify
from vit_jax.models.vit.model import ViTConfig
from vit_jax.objectives.masked_reconstruction import normalize_patches
from vit_jax.paths import as_path
from vit_jax.reporting import galleries, views
from vit_jax.reporting.groups import Group
from vit_jax.reporting.runs import RunRecord
from vit_jax.reporting.sections import sections

OBJECTIVE = {"mask_ratio": 0.5, "normalize_pixels": True}


def mae_config():
    config = helpers.tiny_classifier()
    tower = {"image_size": 8, "patch_size": 2, "width": 16, "depth": 2, "num_heads": 2}
    config.model = {
        "name": "mae_vit_b16", "decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2,
        "decoder_mlp_dim": 32, "inputs": {"crop_fraction": 1.0},
        "image": {**tower, "mlp_dim": 32, "position_init": "normal"},
    }  # fmt: skip
    config.objective = {"name": "masked_reconstruction"}
    return config


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folder and views of a tiny masked autoencoder; its embedder and parameters."""
    folder = tmp_path_factory.mktemp("run")
    experiment = build(mae_config(), workdir=folder)
    embedder = experiment.embedder()
    params = jax.jit(experiment.model.init)(jax.random.key(0))
    views.store(folder, embedder, params, open_source("digits:test"), OBJECTIVE)
    return folder, predictions.load_all(folder), embedder, params


def pixels_of(image):
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB"), np.float64)


def test_the_views_of_a_masked_autoencoder(stored):
    folder, found, *_ = stored
    assert list(found) == ["model/attention", "model/positions", "model/reconstruction"]
    attention = found["model/attention"]
    assert attention["heads"].shape == (4, 2, 4, 4)
    rollout = attention["rollout"].sum(axis=(1, 2))
    assert ((rollout > 0.5) & (rollout < 1)).all()  # the rest is that of the class token
    group = Group("a", [RunRecord("a", {}, {}, workdir=as_path(folder))])
    titles = [(each.title, len(each.galleries[0].rows)) for each in sections([group])]
    assert titles == [("Attention", 4), ("Similarity of positions", 1),
                      ("Masked reconstructions", 4)]  # fmt: skip


def test_positions_equal_numpy(stored):
    table = np.asarray(stored[3]["image"]["positions"], np.float64)[1:]
    norms = np.linalg.norm(table, axis=1)
    expected = (table @ table.T) / np.outer(norms, norms)
    found = stored[1]["model/positions"]["similarity"]
    np.testing.assert_allclose(found.reshape(16, 16), expected, atol=1e-6)
    large = ViTConfig(image_size=40, patch_size=2, width=4, depth=1, num_heads=1, mlp_dim=4)
    table = np.random.default_rng(0).normal(size=(401, 4))
    found = views.position_similarity(table, large)["similarity"]
    assert found.shape == (14, 14, 20, 20)
    np.testing.assert_allclose(found[[0, -1], [0, -1], [0, -1], [0, -1]], 1, atol=1e-6)


def test_hidden_patches_are_reconstructed(stored):
    """Visible patches are the image's; hidden ones are predicted, and grey in the masked image."""
    found = {name: [pixels_of(x) for x in stored[1]["model/reconstruction"][name]]
             for name in ("image", "masked", "reconstructed")}  # fmt: skip
    source, embedder = open_source("digits:test"), stored[2]
    first = embedder.inputs(source[0]["image"])
    assert np.abs(found["image"][0] - first).mean() < 10  # JPEG
    for image, masked, result in zip(*found.values(), strict=True):
        grey = np.abs(masked - 128).reshape(4, 2, 4, 2, 3).max(axis=(1, 3, 4)) < 40
        assert 4 <= grey.sum() <= 12
        assert np.abs(result - image).max() > 30


def test_images_are_put_together_from_patches():
    images = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    patches = patchify(jnp.asarray(images), 2)
    np.testing.assert_array_equal(unpatchify(patches, (6, 4), 2), images)
    deviation = jnp.sqrt(patches.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
    again = normalize_patches(patches) * deviation + patches.mean(-1, keepdims=True)
    np.testing.assert_allclose(again, patches, atol=1e-5)


def test_drawings():
    """The brightest part is that of the largest weight; each map of a mosaic has its place."""
    black = predictions.thumbnail(np.zeros((8, 8, 3), np.uint8))
    weights = np.zeros((2, 2), np.float32)
    weights[0, 1] = 0.3
    drawn = pixels_of(galleries.overlay(black, weights)).sum(axis=-1)
    assert drawn.shape == (96, 96)
    assert drawn[:24, 72:].min() > 2 * drawn[48:, :48].max()
    similarity = np.full((2, 2, 3, 3), -1, np.float32)
    similarity[1, 0] = 1
    drawn = pixels_of(galleries.mosaic(similarity))
    side = len(drawn) // 4
    assert (drawn[3 * side, side] > (200, 200, 30)).all()
    assert (drawn[side, side] < (90, 30, 100)).all()
