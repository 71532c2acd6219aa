"""One recipe, any mesh: the losses of ten steps agree, and parameters are sharded."""

import jax
import numpy as np
import pytest

from tests.helpers import metrics_of, tiny_clip
from vit_jax import experiment
from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.swin.model import SwinConfig
from vit_jax.parallel.mesh import check_batch_size, make_mesh
from vit_jax.parallel.sharding import check_sharded

# Small image towers besides the recipe's ViT, of widths that eight devices divide.
TOWERS = {
    "swin": SwinConfig(image_size=8, patch_size=1, width=16, depths=(2, 2), num_heads=(2, 4),
                       window_size=4),
    "resnet": CLIPResNetConfig(image_size=32, depths=(1, 2, 1, 1), width=8, num_heads=4,
                               embed_dim=16),
}  # fmt: skip


def changed(config, changes):
    """Sets keys by path, as {"mesh.fsdp": 8}."""
    for path, value in changes.items():
        *blocks, key = path.split(".")
        block = config
        for name in blocks:
            block = block[name]
        block[key] = value
    return config


def with_tower(name):
    config = tiny_clip()
    config.model.image = registry.describe(TOWERS[name])
    config.model.image_projection = name != "resnet"
    return config


def losses(workdir, changes, config=None, steps=10):
    config = config or tiny_clip()
    config.total_steps = steps
    config.optim.grad_clip_norm = 1.0
    config.evals = {}
    experiment.train(changed(config, changes), workdir)
    found = metrics_of(workdir)
    assert list(found) == list(range(1, steps + 1))
    return list(found.values())


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("one"), {"mesh.data": 1})


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mesh.data": 8}, marks=pytest.mark.release),
        pytest.param({"mesh.fsdp": 8}, marks=pytest.mark.release),
        pytest.param({"mesh.fsdp": 4, "mesh.tensor": 2}, marks=pytest.mark.release),
        {
            "mesh.data": 2,
            "mesh.fsdp": 2,
            "mesh.tensor": 2,
            "mesh.zero1": True,
            "grad_accum_steps": 2,
            "objective.form": "ring",
        },
        pytest.param({"mesh.data": 1, "grad_accum_steps": 4}, marks=pytest.mark.release),
        pytest.param(
            {"mesh.fsdp": 8, "grad_accum_steps": 4, "objective.form": "ring"},
            marks=pytest.mark.release,
        ),
        pytest.param(
            {"mesh.data": 4, "mesh.tensor": 2, "objective.form": "tiled", "objective.tile_size": 3},
            marks=pytest.mark.release,
        ),
        pytest.param(
            {"mesh.fsdp": 8, "compute.remat": "full", "compute.scan": False},
            marks=pytest.mark.release,
        ),
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()),
)
def test_losses_agree(changes, one_device, tmp_path):
    np.testing.assert_allclose(losses(tmp_path, changes), one_device, rtol=1e-5)


@pytest.mark.release
def test_muon_agrees(tmp_path):
    """Its matrices are split over devices, its state is of two kinds."""
    muon = {"optim.name": "muon"}
    expected = losses(tmp_path / "one", {"mesh.data": 1, **muon}, steps=6)
    changes = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "mesh.zero1": True}
    np.testing.assert_allclose(losses(tmp_path / "eight", {**changes, **muon}, steps=6), expected,
                               rtol=1e-5)  # fmt: skip


@pytest.mark.release
@pytest.mark.parametrize("name", ["resnet", "swin"])
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


@pytest.mark.release
def test_batch_statistics_survive_accumulation_in_bfloat16(tmp_path):
    config = with_tower("resnet")
    config.compute.dtype = "bfloat16"
    found = losses(tmp_path, {"mesh.data": 1, "grad_accum_steps": 2}, config, steps=4)
    assert np.isfinite(found).all()


def declared(**changes):
    return experiment.build(changed(tiny_clip(), {"total_steps": 5, **changes}))


def bytes_on_one_device(tree):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def test_fsdp_splits_parameters_and_moments():
    a, b = declared().init_state(), declared(**{"mesh.fsdp": 8}).init_state()
    # An initialiser that is split over devices may round its last bit otherwise.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a.params, b.params
    )
    for part in ("params", "opt_state"):
        fraction = bytes_on_one_device(getattr(b, part)) / bytes_on_one_device(getattr(a, part))
        assert fraction < 1 / 8 + 0.07  # vectors stay whole


def test_zero1_splits_the_moments_alone():
    a, b = declared().init_state(), declared(**{"mesh.zero1": True}).init_state()
    assert bytes_on_one_device(b.params) == bytes_on_one_device(a.params)
    assert bytes_on_one_device(b.opt_state) < 0.2 * bytes_on_one_device(a.opt_state)


@pytest.mark.release
def test_accumulation_needs_less_memory():
    """Temporaries of the step fall with the number of microbatches."""

    def temporaries(**changes):
        run = declared(**{"batch_size": 512, "mesh.data": 1, **changes})
        compiled = run.train_step.lower(run.abstract_state, run.abstract_batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(grad_accum_steps=8) < 0.5 * temporaries()


def moments_of(name):
    """Shardings of an optimizer's arrays that have the shape of a matrix, and the matrix's own."""
    run = declared(**{"mesh.fsdp": 2, "mesh.tensor": 2, "optim.name": name})
    kernel = run.abstract_state.params["text"]["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    state = jax.tree_util.tree_leaves_with_path(run.abstract_state.opt_state)
    return kernel.sharding.spec, [
        x.sharding.spec
        for path, x in state
        if x.shape == kernel.shape
        and "'text'" in jax.tree_util.keystr(path)
        and "fc1" in jax.tree_util.keystr(path)
    ]


@pytest.mark.parametrize(("name", "moments"), [("adamw", 2), ("muon", 1), ("adabelief", 2)])
def test_moments_are_sharded_like_their_parameters(name, moments):
    kernel, found = moments_of(name)
    assert kernel == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert found == [kernel] * moments


def test_a_mesh_that_leaves_parameters_whole_is_refused():
    image = {"model.image.width": 36, "model.image.num_heads": 3, "model.image.mlp_dim": 60}
    with pytest.raises(UserError, match=r"leaves \d+% of the parameters whole .*image/"):
        declared(**image, **{"mesh.fsdp": 8}).mesh  # noqa: B018 - builds it
    check_sharded(ModelDef(declared().spec.architecture), make_mesh(fsdp=8))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, "fsdp=3 x tensor=1 does not divide 8 devices"),
        ({"data": 4, "fsdp": 4}, "is 16, more than the 8 devices"),
        ({"data": 0}, "expected positive numbers, or data=-1"),
    ],
)
def test_wrong_meshes(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(**sizes)


@pytest.mark.parametrize(
    ("size", "hint"), [(12, "try 8 or 16"), (3, "try 8"), (0, "try 8"), (-8, "try 8")]
)
def test_batches_that_devices_do_not_divide(size, hint):
    with pytest.raises(UserError, match=f"batch_size={size} is not a multiple of the 8 .*{hint}"):
        check_batch_size(size, 8, "config.batch_size")
    check_batch_size(16, 8, "config.batch_size")
