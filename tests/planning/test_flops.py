"""FLOPs of a step: by hand, by formula and from the trace."""

import jax
import pytest
from ml_collections import ConfigDict

from tests.conftest import tiny
from vit_jax.flops import traced_flops
from vit_jax.models import families
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.registry import model_spec
from vit_jax.models.resnet.model import ResNetConfig
from vit_jax.models.swin.model import SwinConfig
from vit_jax.planning.compilation import _trace_without_repetition
from vit_jax.planning.model_flops import image_tower, training_flops
from vit_jax.training import assembly


def step_jaxpr(config):
    program = assembly.build_program(
        config, assembly.build_mesh(config), warmup_steps=1, total_steps=10
    )
    return program, program.step.trace(program.abstract, assembly.batch_shapes(config)).jaxpr


def changed(**changes):
    """The tiny recipe with `model__image__pool="class"` and the like."""
    config = tiny()
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"compute__scan": False},
        {
            "model__image__class_token": True,
            "model__image__pool": "class",
            "model__image__patch_dropout": 0.0,
        },
        {"model__image__pool": "map", "model__image__num_registers": 2},
        {"model__image__patch_size": 2, "model__image__patch_dropout": 0.5},
        {"model__image__pre_norm": True, "model__image__depth": 3, "model__text__causal": True},
        {"model__image__drop_path": 0.1, "model__text__width": 64, "model__embed_dim": 48},
        {"mesh__fsdp": 4, "mesh__tensor": 2},
    ],
)  # fmt: skip
def test_formula_agrees_with_the_trace(changes):
    config = changed(**changes)
    program, jaxpr = step_jaxpr(config)
    expected = training_flops(program.model.architecture, config.batch_size)
    assert traced_flops(jaxpr) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    "tower",
    [
        SwinConfig(image_size=56, patch_size=2, width=16, depths=(2, 3, 2), num_heads=(2, 4, 8),
                   window_size=5),  # 28, 14 and 7 positions a side: windows are filled up
        SwinConfig(image_size=16, patch_size=2, width=16, depths=(1, 2), num_heads=(2, 4)),
        ResNetConfig(image_size=75, depths=(2, 1, 2, 1), width=8),
        CLIPResNetConfig(image_size=64, depths=(1, 2, 1, 2), width=8, num_heads=4, embed_dim=16),
    ],
    ids=lambda tower: f"{type(tower).__name__} {tower.image_size}",
)  # fmt: skip
def test_formula_of_other_towers(tower):
    config = tiny()
    with config.unlocked():
        config.model.image = ConfigDict(families.describe(tower))
        config.model.image_projection = not isinstance(tower, CLIPResNetConfig)
    program, jaxpr = step_jaxpr(config)
    expected = training_flops(program.model.architecture, config.batch_size)
    assert traced_flops(jaxpr) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("name", "published"),
    [("swin_t", 4.5e9), ("swin_b", 15.4e9), ("resnet50", 4.1e9), ("deit_b16", 17.6e9)],
)
def test_published_costs(name, published):
    """Multiply-adds an image as the papers print them (Swin and DeiT, table 1; torchvision)."""
    tower = image_tower(model_spec(name).architecture)
    assert (tower.stem + tower.rest) / 2 == pytest.approx(published, rel=0.02)


def test_hand_count():
    config = changed(model__image__patch_dropout=0.5)
    # Image: 4 patches of 4 x 4 x 3, of which 2 are kept; text: 8 tokens; both 2 blocks, 32 wide.
    per_token = 4 * 32 * 32 + 2 * 32 * 64
    image = 3 * 2 * (2 * (2 * per_token + 2 * (2 * 2 * 32))) + 2 * (2 * 4 * 48 * 32)
    text = 3 * 2 * (2 * (8 * per_token + 2 * (8 * 8 * 32)))
    projections = 3 * 2 * (2 * 32 * 16)
    loss = 3 * 2 * 32 * 32 * 16
    program, _ = step_jaxpr(config)
    found = training_flops(program.model.architecture, 32)
    assert found == 32 * (image + text + projections) + loss


@pytest.mark.parametrize(
    "changes",
    [
        {"compute__remat": "full"},
        {"compute__remat": "dots"},
        {"grad_accum_steps": 2},
        {"objective__form": "ring"},
    ],
)
def test_repeated_work_is_executed_but_not_of_the_model(changes):
    config = changed(**changes)
    _, executed = step_jaxpr(config)
    _, plain = step_jaxpr(tiny())
    model = traced_flops(_trace_without_repetition(config, assembly.build_mesh(config)))
    assert model == traced_flops(plain)
    assert traced_flops(executed) > model


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
