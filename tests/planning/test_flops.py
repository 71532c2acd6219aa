"""FLOPs of traced programs, against published costs and counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from tests import helpers
from vit_jax.experiment import build
from vit_jax.flops import traced_flops
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.planning.compilation import trace_step, without_recomputation


def changed(**changes):
    """The tiny CLIP with `model__image__pool="class"` and the like."""
    config = helpers.tiny_clip()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def step_flops(config):
    return traced_flops(trace_step(build(config, data=False)).jaxpr)


def forward_flops(name):
    """FLOPs of a registered model for one image."""
    spec = model_spec(name)
    model = ModelDef(spec.architecture)
    image = jax.ShapeDtypeStruct((1, *spec.inputs.size, 3), jnp.float32)
    return traced_flops(jax.make_jaxpr(lambda p, x: model.bind(p)(x))(model.shapes(), image))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("swin_t", 4.5e9),  # Liu et al. 2021, table 1
        ("swin_b", 15.4e9),
        ("resnet50", 4.1e9),  # torchvision
        ("deit_b16", 17.6e9),  # Touvron et al. 2021, table 5 (timm)
    ],
)
def test_published_costs(name, published):
    """The papers print multiply-adds per image."""
    assert forward_flops(name) / 2 == pytest.approx(published, rel=0.02)


# The tiny CLIP by hand. A block of `tokens` tokens with width 32 and MLP width 64 has four
# projections, two matrices of the MLP, and two products of attention.
def block(tokens):
    return 2 * (tokens * (4 * 32 * 32 + 2 * 32 * 64) + 2 * tokens * tokens * 32)


# Training takes three products per product of the forward pass. The first convolution takes two:
# images need no gradient. Patches have 4 x 4 x 3 values; there are 4.
STEM = 2 * (2 * 4 * 48 * 32)
TEXT = 3 * 2 * block(8)
PROJECTIONS = 3 * 2 * (2 * 32 * 16)
LOSS = 3 * 2 * 32 * 32 * 16  # all pairs of the batch


@pytest.mark.parametrize(
    ("changes", "image"),
    [
        ({}, 3 * 2 * block(4)),
        ({"compute__scan": False}, 3 * 2 * block(4)),
        ({"model__image__class_token": True, "model__image__pool": "class"}, 3 * 2 * block(5)),
        ({"model__image__patch_dropout": 0.5}, 3 * 2 * block(2)),
        ({"model__image__depth": 3, "model__image__num_registers": 2}, 3 * 3 * block(6)),
        ({"mesh__fsdp": 4, "mesh__tensor": 2}, 3 * 2 * block(4)),
    ],
)
def test_training_step_by_hand(changes, image):
    expected = 32 * (STEM + image + TEXT + PROJECTIONS) + LOSS
    assert step_flops(changed(**changes)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"compute__remat": "full"},
        {"compute__remat": "dots"},
        {"grad_accum_steps": 2},
        {"objective__form": "ring"},
    ],
)
def test_recomputation_is_executed_but_not_part_of_the_model(changes):
    config = changed(**changes)
    plain = step_flops(helpers.tiny_clip())
    assert step_flops(without_recomputation(config)) == plain
    assert step_flops(config) > plain


def test_loops_branches_and_convolutions():
    x = jax.ShapeDtypeStruct((4, 4), "float32")
    matmul = 2 * 4**3

    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)

    assert traced_flops(jax.make_jaxpr(loop)(x)) == 5 * matmul
    assert traced_flops(jax.make_jaxpr(branch)(x)) == 2 * matmul
    image, kernel = (jax.ShapeDtypeStruct(s, "float32") for s in ((2, 3, 8, 8), (5, 3, 2, 2)))
    conv = jax.make_jaxpr(lambda a, b: jax.lax.conv(a, b, (2, 2), "VALID"))(image, kernel)
    assert traced_flops(conv) == 2 * (2 * 5 * 4 * 4) * (3 * 2 * 2)
