"""The loss of a masked autoencoder against NumPy in float64, its cost, and a whole run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import PATCH, build, context, random_images, small_vit

from tests.helpers import metrics_of
from vit_jax import experiment
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.flops import traced_flops
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.models.mae.model import MAEConfig, num_shown, patchify
from vit_jax.objectives.masked_reconstruction import normalize_patches

PATCHES = 4 * 6  # of 8 x 12 px


def small_mae():
    return MAEConfig(
        image=small_vit(),
        decoder_width=16,
        decoder_depth=1,
        decoder_num_heads=2,
        decoder_mlp_dim=16,
    )


def objective(microbatches=(1, 1), **keys):
    return build("masked_reconstruction", context(small_mae(), microbatches=microbatches), **keys)


class Recorder:
    """Stands in for a model: records the noise and answers with a fixed prediction."""

    def __init__(self, answer):
        self.answer, self.noise = answer, None

    def reconstruct(self, images, noise, mask_ratio):
        self.noise = noise
        shown = int(noise.shape[1] * (1 - mask_ratio))
        rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
        return jnp.asarray(self.answer, jnp.float32), (rank >= shown).astype(jnp.float32)


def errors_of_hidden_patches(answer, seen, noise, ratio, normalized):
    """(images, hidden patches), float64."""
    # (rows, columns, channels) of each patch, one after the other.
    target = np.stack(
        [
            seen[:, y : y + PATCH, x : x + PATCH].reshape(len(seen), -1)
            for y in range(0, 8, PATCH)
            for x in range(0, 12, PATCH)
        ],
        axis=1,
    )
    if normalized:
        mean, var = target.mean(-1, keepdims=True), target.var(-1, ddof=1, keepdims=True)
        target = (target - mean) / np.sqrt(var + 1e-6)
    hidden = np.argsort(np.asarray(noise), axis=1)[:, int(PATCHES * (1 - ratio)) :]
    return np.asarray(
        [
            [((answer[i, patch] - target[i, patch]) ** 2).mean() for patch in hidden[i]]
            for i in range(len(seen))
        ]
    )


@pytest.mark.parametrize(("ratio", "normalized"), [(0.75, True), (0.5, False), (0.9, True)])
def test_loss_with_the_same_mask(ratio, normalized):
    packed, seen = random_images(5)
    answer = np.random.default_rng(1).normal(size=(5, PATCHES, PATCH**2 * 3))
    model = Recorder(answer)
    keys = {"mask_ratio": ratio, "normalize_pixels": normalized}
    loss, metrics = objective(**keys)(model, {"image": packed}, jax.random.key(3))
    assert metrics == {}
    errors = errors_of_hidden_patches(answer, seen, model.noise, ratio, normalized)
    np.testing.assert_allclose(loss, errors.mean(), rtol=1e-5)
    # Every image has a mask of its own.
    assert len({tuple(row) for row in np.argsort(np.asarray(model.noise), axis=1)}) == 5


def test_patches_without_contrast():
    """Their normalised pixels are 0, not NaN."""
    found = normalize_patches(jnp.full((2, 3, PATCH**2 * 3), 0.3))
    np.testing.assert_allclose(found, 0, atol=1e-3)


def test_only_hidden_patches_count():
    """A model that is wrong only where it was shown the patch has no loss."""
    packed, seen = random_images(2)
    target = patchify(jnp.asarray(seen, jnp.float32), PATCH)

    class Model(Recorder):
        def reconstruct(self, images, noise, mask_ratio):
            _, mask = super().reconstruct(images, noise, mask_ratio)
            return target + 5.0 * (1 - mask[..., None]), mask

    loss, _ = objective(normalize_pixels=False)(Model(target), {"image": packed}, jax.random.key(0))
    assert float(loss) < 1e-10


def test_evaluation_hides_the_same_patches_every_time():
    packed, seen = random_images(5)
    answer = np.random.default_rng(1).normal(size=(5, PATCHES, PATCH**2 * 3))
    first, second = Recorder(answer), Recorder(answer)
    loss, _ = objective(microbatches=(5, 1)).evaluate(first, {"image": packed})
    weight = np.asarray([1, 0, 1, 1, 0], np.float32)
    padded, _ = objective().evaluate(second, {"image": packed, "weight": jnp.asarray(weight)})
    np.testing.assert_array_equal(first.noise, second.noise)
    errors = errors_of_hidden_patches(answer, seen, first.noise, 0.75, True).mean(1)
    np.testing.assert_allclose(loss, errors.mean(), rtol=1e-5)
    np.testing.assert_allclose(padded, np.average(errors, weights=weight), rtol=1e-5)


@pytest.mark.release
def test_microbatches_hide_the_same_patches():
    model = ModelDef(small_mae())
    params = jax.jit(model.init)(jax.random.key(0))
    packed, _ = random_images(8)

    def loss_and_gradient(microbatches):
        cut = objective(microbatches)
        return jax.jit(
            jax.value_and_grad(
                lambda p: cut(model.bind(p), {"image": packed}, jax.random.key(1))[0]
            )
        )(params)

    whole, cut = loss_and_gradient((1, 1)), loss_and_gradient((2, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), whole, cut)


def test_the_encoder_costs_what_it_sees():
    """At 75%, less than 30% of the FLOPs of the whole image (ViT-B/16)."""
    spec = registry.model_spec("mae_vit_b16")
    model = ModelDef(spec.architecture)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)

    def encoder(ratio):
        shown = jax.ShapeDtypeStruct((2, num_shown(196, ratio)), jnp.int32)
        return traced_flops(
            jax.make_jaxpr(lambda p, x, s: model.bind(p).image.encode_patches(x, s))(
                model.shapes(), images, shown
            )
        )

    assert 0.2 < encoder(0.75) / encoder(0.0) < 0.3
    assert encoder(0.5) / encoder(0.0) < 0.55


def mae_config(**changes):
    """A small masked autoencoder on scikit-learn's digits."""
    config = default_config(model="mae_vit_b16", objective="masked_reconstruction")
    config.model.image.update(
        image_size=8, patch_size=2, width=32, depth=2, num_heads=2, mlp_dim=64
    )
    config.model.update(decoder_width=16, decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=32)
    config.data.train = "digits:train"
    config.batch_size = 64
    config.total_steps = 40
    config.log_steps = 10
    config.checkpoint_percent = 0.0
    config.optim.lr = 5e-3
    config.optim.warmup_steps = 5
    config.evals.probe = {"digits": {"train": "digits:train[:300]", "test": "digits:test[:100]"}}
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value})
    return config


@pytest.mark.release
def test_a_masked_autoencoder_learns(tmp_path):
    """The loss falls below that of predicting the mean, 1, and a probe reads digits."""
    config = mae_config()
    config.compute.scan, config.mesh.data = False, 1
    metrics = experiment.train(config, tmp_path)
    assert metrics["probe/digits/top1"] > 0.5
    losses = metrics_of(tmp_path)
    assert losses[40] < 0.8 < losses[10]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mask_ratio": 1.0}, r"mask_ratio=1.0 of 24 patches: expected a fraction that hides"),
        ({"mask_ratio": 0.0}, "hides at least one"),
        ({"mask_ratio": 0.99}, "shows at least one"),
        ({"mask_ratoi": 0.5}, "did you mean 'config.objective.mask_ratio'"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(UserError, match=message):
        objective(**keys)


def test_a_model_without_a_decoder():
    with pytest.raises(UserError, match=r"needs a model with a decoder, .*; found ViTConfig"):
        build("masked_reconstruction", context(small_vit()))


def test_a_wrong_config_leaves_no_workdir(tmp_path):
    config = mae_config()
    config.objective.name = "masked_reconstructoin"
    with pytest.raises(UserError, match="did you mean 'masked_reconstruction'"):
        experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
