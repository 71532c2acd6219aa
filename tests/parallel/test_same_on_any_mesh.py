"""One recipe, any mesh: the losses of 20 steps agree; parameters really are sharded."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.helpers import tiny_clip
from vit_jax import experiment
from vit_jax.errors import UserError
from vit_jax.models import families
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.swin.model import SwinConfig
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.sharding import check_sharded
from vit_jax.training import assembly

# Image towers beside the recipe's ViT: small, of widths that eight devices divide.
TOWERS = {
    "swin": SwinConfig(image_size=8, patch_size=1, width=16, depths=(2, 2), num_heads=(2, 4),
                       window_size=4),
    "resnet": CLIPResNetConfig(image_size=32, depths=(1, 2, 1, 1), width=8, num_heads=4,
                               embed_dim=16),
}  # fmt: skip


def with_tower(name):
    config = tiny_clip()
    fields = families.describe(TOWERS[name])
    with config.unlocked():
        config.model.image = ConfigDict(fields)
        config.model.image_projection = name != "resnet"
    return config


def losses(workdir, changes, config=None, steps=20):
    config = config or tiny_clip()
    config.total_steps = steps
    config.optim.grad_clip_norm = 1.0
    config.evals = {}
    config.update_from_flattened_dict(changes)
    experiment.train(config, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("one"), {"mesh.data": 1})


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"mesh.data": 8},
        {"mesh.fsdp": 8},
        {"mesh.fsdp": 4, "mesh.tensor": 2},
        {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "mesh.zero1": True},
        {"mesh.data": 1, "grad_accum_steps": 4},
        {"mesh.fsdp": 8, "grad_accum_steps": 4, "objective.form": "ring"},
        {"mesh.data": 4, "mesh.tensor": 2, "objective.form": "tiled", "objective.tile_size": 3},
        {"mesh.fsdp": 8, "compute.remat": "full", "compute.scan": False},
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()),
)
def test_losses_agree(changes, one_device, tmp_path):
    np.testing.assert_allclose(losses(tmp_path, changes), one_device, rtol=1e-5)


@pytest.mark.slow
def test_muon_agrees(tmp_path):
    """Its matrices are split over devices, its state is of two kinds."""
    muon = {"optim.name": "muon"}
    expected = losses(tmp_path / "one", {"mesh.data": 1, **muon}, steps=6)
    changes = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "mesh.zero1": True}
    np.testing.assert_allclose(losses(tmp_path / "eight", {**changes, **muon}, steps=6), expected,
                               rtol=1e-5)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_other_image_towers_agree(name, tmp_path):
    """Split parameters, the ring and recomputation change nothing."""
    expected = losses(tmp_path / "one", {"mesh.data": 1}, with_tower(name), steps=3)
    changes = {
        "mesh.fsdp": 4,
        "mesh.tensor": 2,
        "mesh.zero1": True,
        "objective.form": "ring",
        "compute.remat": "dots",
    }
    found = losses(tmp_path / "eight", changes, with_tower(name), steps=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_batch_statistics_survive_accumulation_in_bfloat16(tmp_path):
    config = with_tower("resnet")
    config.compute.dtype = "bfloat16"
    found = losses(tmp_path, {"mesh.fsdp": 8, "grad_accum_steps": 2}, config, steps=4)
    assert np.isfinite(found).all()


def program(**changes):
    config = tiny_clip()
    config.update_from_flattened_dict(changes)
    mesh = assembly.build_mesh(config)
    return assembly.build_program(config, mesh, warmup_steps=1, total_steps=5)


def bytes_on_one_device(tree):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def test_fsdp_splits_parameters_and_moments():
    whole, split = program(), program(**{"mesh.fsdp": 8})
    a, b = whole.init(), split.init()
    # Where an initialiser is cut into parts, its last bit may round otherwise.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a.params, b.params
    )
    for part in ("params", "opt_state"):
        share = bytes_on_one_device(getattr(b, part)) / bytes_on_one_device(getattr(a, part))
        assert share < 1 / 8 + 0.07  # vectors stay whole


def test_zero1_splits_the_moments_alone():
    whole, split = program(), program(**{"mesh.zero1": True})
    a, b = whole.init(), split.init()
    assert bytes_on_one_device(b.params) == bytes_on_one_device(a.params)
    assert bytes_on_one_device(b.opt_state) < 0.2 * bytes_on_one_device(a.opt_state)


def test_accumulation_needs_less_memory():
    """Temporaries of the step fall with the number of parts."""

    def temporaries(**changes):
        p = program(batch_size=512, **{"mesh.data": 1}, **changes)
        batch = {
            "image": jax.ShapeDtypeStruct((512, 8 * 8 * 3), np.uint8),
            "tokens": jax.ShapeDtypeStruct((512, 8), np.int32),
        }
        compiled = p.step.lower(p.abstract, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(grad_accum_steps=8) < 0.5 * temporaries()


def test_a_mesh_that_leaves_parameters_whole_is_refused():
    config = tiny_clip()
    config.model.image.update(width=36, num_heads=3, mlp_dim=60)
    with pytest.raises(UserError, match=r"leaves \d+% of the parameters whole .*image/"):
        check_sharded(assembly.build_model(config), make_mesh(fsdp=8))
    check_sharded(assembly.build_model(tiny_clip()), make_mesh(fsdp=8))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, "fsdp=3 x tensor=1 does not divide 8 devices"),
        ({"data": 4, "fsdp": 4}, "is 16, there are 8 devices"),
        ({"data": 0}, "not a mesh"),
    ],
)
def test_wrong_meshes(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(**sizes)
