"""The loss of a masked autoencoder against NumPy in float64, its cost, and a whole run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vit_jax.training.objective import build_objective

from vit_jax import experiment
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.flops import traced_flops
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.models.mae.model import patchify
from vit_jax.objectives.masked_reconstruction import MaskedReconstruction
from vit_jax.objectives.microbatches import Microbatches
from vit_jax.training import assembly


def mae_config(**changes):
    """A small masked autoencoder on scikit-learn's digits."""
    config = default_config(model="mae_vit_b16")
    config.model.image.update(
        image_size=8, patch_size=2, width=32, depth=2, num_heads=2, mlp_dim=64
    )
    config.model.update(decoder_width=16, decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=32)
    config.data.train = "digits:train"
    config.batch_size = 64
    config.total_steps = 40
    config.log_steps = 10
    config.checkpoint_percent = 0.0
    config.objective.name = "masked_reconstruction"
    config.optim.lr = 5e-3
    config.optim.warmup_steps = 5
    config.evals.probe = {"digits": {"train": "digits:train[:300]", "test": "digits:test[:100]"}}
    config.update_from_flattened_dict(changes)
    return config


class Recorder:
    """Stands for a model: keeps what it is asked and answers with a fixed prediction."""

    def __init__(self, answer):
        self.answer, self.noise = answer, None

    def reconstruct(self, images, noise, mask_ratio):
        self.noise = noise
        shown = int(noise.shape[1] * (1 - mask_ratio))
        rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
        return jnp.asarray(self.answer, jnp.float32), (rank >= shown).astype(jnp.float32)


@pytest.mark.parametrize(("ratio", "normalized"), [(0.75, True), (0.5, False), (0.9, True)])
def test_loss_with_the_same_mask(ratio, normalized):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 12, 8, 3)).astype(np.float32)
    images[0, :4, :4] = 0.3  # a patch without contrast
    answer = rng.normal(size=(5, 24, 12))
    model = Recorder(answer)
    objective = MaskedReconstruction(
        prepare=lambda x: x,
        num_patches=24,
        patch_size=2,
        mask_ratio=ratio,
        normalize_pixels=normalized,
    )
    loss, metrics = objective(model, {"image": jnp.asarray(images)}, jax.random.key(3))
    assert metrics == {}

    # (rows, columns, channels) of each patch, one after the other.
    target = np.stack(
        [
            images[:, y : y + 2, x : x + 2].reshape(5, 12)
            for y in range(0, 12, 2)
            for x in range(0, 8, 2)
        ],
        axis=1,
    ).astype(np.float64)
    if normalized:
        mean, var = target.mean(-1, keepdims=True), target.var(-1, ddof=1, keepdims=True)
        target = (target - mean) / np.sqrt(var + 1e-6)
    order = np.argsort(np.asarray(model.noise), axis=1)
    errors = [
        ((answer[i, patch] - target[i, patch]) ** 2).mean()
        for i in range(5)
        for patch in order[i, int(24 * (1 - ratio)) :]
    ]
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)
    # Every image has a mask of its own.
    assert len({tuple(row) for row in order}) == 5


def test_only_hidden_patches_count():
    """A model that is wrong only where it was shown the patch has no loss."""
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    target = np.asarray(patchify(jnp.asarray(images), 2))
    objective = MaskedReconstruction(
        prepare=lambda x: x, num_patches=16, patch_size=2, normalize_pixels=False
    )

    class Model(Recorder):
        def reconstruct(self, images, noise, mask_ratio):
            _, mask = super().reconstruct(images, noise, mask_ratio)
            return target + 5.0 * (1 - mask[..., None]), mask

    loss, _ = objective(Model(target), {"image": jnp.asarray(images)}, jax.random.key(0))
    assert float(loss) == 0.0


@pytest.mark.slow
def test_parts_hide_the_same_patches():
    config = mae_config(**{"model.image.depth": 1, "model.image.patch_size": 4})
    model = assembly.build_model(config)
    params = model.init(jax.random.key(0))
    batch = {"image": np.random.default_rng(0).integers(0, 255, (8, 192)).astype(np.uint8)}
    objective = build_objective(config, assembly.build_mesh(config), 8)

    def loss_and_gradient(parts):
        objective.parts = parts
        return jax.jit(
            jax.value_and_grad(lambda p: objective(model.bind(p), batch, jax.random.key(1))[0])
        )(params)

    whole, cut = loss_and_gradient(Microbatches()), loss_and_gradient(Microbatches(2, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), whole, cut)


def test_the_encoder_costs_what_it_sees():
    """At 75%, less than 30% of the FLOPs of the whole image (ViT-B/16)."""
    spec = registry.model_spec("mae_vit_b16")
    model = ModelDef(spec.architecture)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)

    def encoder(ratio):
        shown = jax.ShapeDtypeStruct((2, int(196 * (1 - ratio))), jnp.int32)
        return traced_flops(
            jax.make_jaxpr(lambda p, x, s: model.bind(p).image.encode_patches(x, s))(
                model.shapes(), images, shown
            )
        )

    assert 0.2 < encoder(0.75) / encoder(0.0) < 0.3
    assert encoder(0.5) / encoder(0.0) < 0.55


@pytest.mark.slow
def test_a_masked_autoencoder_learns(tmp_path):
    """The loss falls below that of predicting the mean, 1, and a probe reads digits."""
    figures = experiment.train(mae_config(**{"compute.scan": False}), tmp_path)
    assert figures["probe/digits/top1"] > 0.5
    text = (tmp_path / "metrics.jsonl").read_text()
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in text.splitlines()[:4]]
    assert losses[-1] < 0.8 < losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.mask_ratio": 1.0}, r"mask_ratio=1.0 of 16 patches: expected a share that"),
        ({"objective.mask_ratio": 0.0}, "hides at least one"),
        ({"objective.mask_ratio": 0.99}, "shows at least one"),
        ({"objective.name": "masked_reconstructoin"}, "did you mean 'masked_reconstruction'"),
        ({"objective.name": "classification"}, "needs a model with a head"),
    ],
)
def test_a_masked_autoencoder_with_the_wrong_config(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        experiment.train(mae_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_masked_reconstruction_needs_a_decoder(tmp_path):
    config = default_config(model="swin_t")
    config.data.train, config.batch_size, config.total_steps = "digits:train", 8, 1
    config.objective.name = "masked_reconstruction"
    with pytest.raises(UserError, match="a model with a decoder, of the family mae; found 'swin'"):
        experiment.train(config, tmp_path / "run")
