"""Gradients of every parameter, masked autoencoders, and errors in architectures."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models import partitioning
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.mae.model import MAEConfig, patchify
from vit_jax.models.vit.model import ViTConfig

SMALL = {"image_size": 16, "patch_size": 4, "width": 24, "depth": 2, "num_heads": 2, "mlp_dim": 32}
TEXT = TextConfig(
    vocab_size=50, context_length=9, width=16, depth=2, num_heads=2, mlp_dim=32, pool="last"
)
MODELS = {
    "deit": ViTConfig(**SMALL, distillation=True, num_classes=5, layer_scale=0.1),
    "registers": ViTConfig(**SMALL, num_registers=3, qk_norm=True, pool="mean", num_classes=5),
    "deit3": ViTConfig(**SMALL, prefix_positions=False, num_classes=5),
    "mae_fine_tuning": ViTConfig(**SMALL, pool="mean_norm", num_classes=5),
    "mae": MAEConfig(
        image=ViTConfig(**SMALL, position_init="fixed_sincos"),
        decoder_width=16,
        decoder_depth=2,
        decoder_num_heads=2,
        decoder_mlp_dim=24,
    ),
    "siglip": CLIPConfig(
        image=ViTConfig(**SMALL, class_token=False, pool="map"),
        text=TEXT,
        embed_dim=24,
        image_projection=False,
        text_projection_bias=True,
        init_logit_bias=-10.0,
    ),
}


def images(count=3):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, 16, 16, 3)), jnp.float32)


def loss_of(model: ModelDef, params):
    """A scalar that depends on all outputs of the model."""
    module = model.bind(params)
    if isinstance(model.architecture, MAEConfig):
        noise = jnp.asarray(np.random.default_rng(1).random((3, 16)), jnp.float32)
        pixels, mask = module.reconstruct(images(), noise, 0.75)
        error = jnp.square(pixels - patchify(images(), 4)).mean(-1)
        return jnp.sum(error * mask) / jnp.sum(mask)
    if isinstance(model.architecture, CLIPConfig):
        tokens = jnp.asarray(np.random.default_rng(2).integers(0, 50, (3, 9)))
        scale, bias = module.logit_parameters()
        z = module.encode_image(images(), normalize=True)
        t = module.encode_text(tokens, normalize=True)
        return jnp.sum(jnp.sin(scale * z @ t.T + bias))
    return jnp.sum(jnp.sin(module(images())))


VARIANTS = ("registers", "deit3", "mae_fine_tuning")


def random_params(model: ModelDef):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(scale=0.3, size=x.shape), jnp.float32), model.shapes()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["deit", "mae", "siglip", *(pytest.param(x, marks=pytest.mark.release) for x in VARIANTS)],
)
def test_every_parameter_gets_a_gradient_scanned_or_not(name):
    architecture = MODELS[name]
    grads = []
    for scan in (True, False):
        model = ModelDef(architecture, scan=scan)
        params = random_params(model)
        grads.append(jax.jit(jax.value_and_grad(lambda p, m=model: loss_of(m, p)))(params))
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale), *grads
    )
    vocabulary = 50  # ids that the batch does not use have no gradient
    for path, grad in jax.tree_util.tree_leaves_with_path(grads[0][1]):
        touched = np.asarray(grad) != 0
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if grad.shape[:1] == (vocabulary,):
            assert touched.any(), name
        # A bias of the keys shifts all scores of a query equally; softmax is invariant to it.
        elif name.endswith("k_norm/bias"):
            continue
        elif name.endswith("qkv/bias"):
            assert touched[:, [0, 2]].all(), name
        elif name.endswith("key_value/bias"):
            assert touched[1].all(), name
        else:
            assert touched.all(), name


@pytest.mark.parametrize("name", ["deit", "siglip"])
def test_gradients_are_lowered_for_gpus(name):
    """Without a GPU: the implementations chosen for GPUs can be lowered for CUDA."""
    model = ModelDef(MODELS[name], dtype="bfloat16")

    def gradients(params):
        with partitioning.use(None, "gpu", device_kind="NVIDIA H100"):
            return jax.grad(lambda p: loss_of(model, p))(params)

    lowered = jax.jit(gradients).trace(model.shapes()).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert "bf16" in text
    assert "tpu_custom_call" not in text


def test_mae_masks_a_fraction_of_the_patches():
    model = ModelDef(MODELS["mae"])
    module = model.bind(random_params(model))
    noise = jnp.asarray(np.random.default_rng(1).random((3, 16)), jnp.float32)
    pixels, mask = module.reconstruct(images(), noise, 0.75)
    assert pixels.shape == (3, 16, 48)
    np.testing.assert_array_equal(mask.sum(axis=1), 12)
    # The visible patches are those of the smallest noise.
    np.testing.assert_array_equal(np.asarray(mask) == 0, np.argsort(np.argsort(noise)) < 4)
    # Masked pixels have no influence.
    hidden = np.repeat(np.asarray(mask)[..., None], 48, axis=-1)
    noisy = np.asarray(patchify(images(), 4)) + 5 * hidden
    grid = noisy.reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 16, 3)
    np.testing.assert_allclose(
        module.reconstruct(jnp.asarray(grid), noise, 0.75)[0], pixels, atol=1e-5
    )


def test_mae_errors():
    module = ModelDef(MODELS["mae"])
    module = module.bind(random_params(module))
    with pytest.raises(UserError, match=r"noise \(3, 15\): expected one number per patch"):
        module.reconstruct(images(), jnp.zeros((3, 15)), 0.75)
    with pytest.raises(UserError, match=r"mask_ratio=1.0: expected a fraction in \[0, 1\)"):
        module.reconstruct(images(), jnp.zeros((3, 16)), 1.0)
    with pytest.raises(UserError, match="a masked autoencoder has no head"):
        MAEConfig(image=ViTConfig(**SMALL, num_classes=3))


def test_distillation_logits():
    model = ModelDef(MODELS["deit"])
    module = model.bind(random_params(model))
    by_class, by_distillation = module.both_logits(images())
    assert not np.allclose(by_class, by_distillation)
    np.testing.assert_allclose(module(images()), (by_class + by_distillation) / 2, rtol=1e-6)
    plain = ModelDef(MODELS["deit3"])
    with pytest.raises(UserError, match="no distillation head"):
        plain.bind(random_params(plain)).both_logits(images())


@pytest.mark.parametrize("changes", [{"pool": "class"}, {"pool": "mean", "distillation": True}])
def test_class_token_is_required(changes):
    with pytest.raises(UserError, match="needs class_token=True"):
        ViTConfig(**SMALL, class_token=False, **changes)


def test_dual_encoder_without_projection_needs_equal_widths():
    config = CLIPConfig(
        image=ViTConfig(**SMALL, pool="mean"), text=TEXT, embed_dim=8, image_projection=False
    )
    with pytest.raises(UserError, match="width 24 must be embed_dim=8"):
        ModelDef(config)


class Layer(nnx.Module):
    """One linear layer."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)

    def layers_above(self):
        return {}


@dataclasses.dataclass(frozen=True)
class Counted:
    """Counts how often it is built."""

    sizes: Any
    made: ClassVar[list] = []

    def make(self, *, rngs, **execution):
        self.made.append(self.sizes)
        return Layer(rngs)


def test_equal_architectures_are_traced_once():
    """Except those that cannot be hashed."""
    for sizes, count in (((1,), 1), ([1], 2)):
        Counted.made.clear()
        models = [ModelDef(Counted(sizes)) for _ in range(2)]
        assert len(Counted.made) == count
        shapes = [model.shapes()["linear"]["kernel"].shape for model in models]
        assert shapes == [(2, 3), (2, 3)]
