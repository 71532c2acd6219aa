"""Losses and optimizers against PyTorch's, as DeiT, MAE and timm use them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.models.definition import ModelDef
from vit_jax.models.mae.model import patchify
from vit_jax.objectives.distillation import distillation_loss
from vit_jax.objectives.masked_reconstruction import hidden_error, normalize_patches
from vit_jax.training.optimizers import make_optimizer, parse_optim

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_deit_losses(temperature):
    """The authors divide the soft loss by the number of logits, the paper by that of examples."""
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 10)).astype(np.float32) * 4
    s, t = torch.tensor(student), torch.tensor(teacher)
    soft = F.kl_div(
        F.log_softmax(s / temperature, dim=1),
        F.log_softmax(t / temperature, dim=1),
        reduction="sum",
        log_target=True,
    )
    theirs = soft * temperature**2 / s.numel()
    found = distillation_loss(jnp.asarray(student), jnp.asarray(teacher), "soft", temperature)
    np.testing.assert_allclose(found / 10, theirs.item(), rtol=1e-5)
    hard = F.cross_entropy(s, t.argmax(dim=1))
    found = distillation_loss(jnp.asarray(student), jnp.asarray(teacher), "hard", temperature)
    np.testing.assert_allclose(found, hard.item(), rtol=1e-5)


def test_mae_loss():
    """Patches in MAE's own order, torch's unbiased variance, the mean over hidden patches."""
    import torch

    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 8, 8, 3)).astype(np.float32)
    pixels = rng.normal(size=(3, 4, 48)).astype(np.float32)
    mask = np.asarray([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1]], np.float32)
    x = torch.tensor(images).permute(0, 3, 1, 2)
    target = torch.einsum("nchpwq->nhwpqc", x.reshape(3, 3, 2, 4, 2, 4)).reshape(3, 4, 48)
    mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    target = (target - mean) / (var + 1e-6) ** 0.5
    loss = ((torch.tensor(pixels) - target) ** 2).mean(-1)
    theirs = (loss * torch.tensor(mask)).sum() / mask.sum()
    ours = hidden_error(
        jnp.asarray(pixels), normalize_patches(patchify(jnp.asarray(images), 4)), jnp.asarray(mask)
    )
    np.testing.assert_allclose(jnp.mean(ours), theirs.item(), rtol=1e-5)


class Model(ModelDef):
    """Stands in for a ModelDef of one matrix."""

    def __init__(self):
        pass

    def metadata(self, key):
        return {"x": {"decay": True, "axes": ("embed", "mlp")}[key]}


@pytest.mark.parametrize("name", ["adamw", "sgd", "nesterov", "lion"])
def test_optimizers(name):
    import torch
    from timm.optim import Lion

    keys = {
        "adamw": {"b1": 0.9, "b2": 0.99, "eps": 1e-8},
        "sgd": {"momentum": 0.9},
        "nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
        "lion": {"b1": 0.9, "b2": 0.99},
    }[name]
    optim = parse_optim({"name": name, "weight_decay": 0.1, **keys})
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 5)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start))
    their_optimizer = {
        "adamw": lambda p: torch.optim.AdamW(p, 0.01, (0.9, 0.99), weight_decay=0.1),
        "sgd": lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=0.1),
        "nesterov": lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=0.1, nesterov=True),
        "lion": lambda p: Lion(p, 0.01, (0.9, 0.99), weight_decay=0.1),
    }[name]([theirs])
    optimizer = make_optimizer(optim, lambda _: 0.01, Model())
    params = {"x": jnp.asarray(start)}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(5):
        gradient = rng.normal(size=(4, 5)).astype(np.float32)
        theirs.grad = torch.tensor(gradient)
        their_optimizer.step()
        updates, state = update({"x": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["x"], theirs.detach().numpy(), rtol=1e-5, atol=1e-6)
