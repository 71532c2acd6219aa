"""Plans compared with real arrays, on simulated devices; `-m release` plans for a TPU."""

import dataclasses
import json

import jax
import pytest

from benchmarks.timed_step import random_batch
from tests import helpers
from vit_jax.errors import UserError
from vit_jax.experiment import build
from vit_jax.planning import compilation, report
from vit_jax.planning.collectives import Contents
from vit_jax.planning.topologies import CHIPS, find_slice
from vit_jax.planning.units import demanded_bytes, format_bytes
from vit_jax.recipes import apply_override


@pytest.fixture(scope="module")
def plan():
    """A tiny run with FSDP, ZeRO and a moving average."""
    return compilation.make_plan(sharded_config(), find_slice("cpu-8"))


def sharded_config():
    config = helpers.tiny_clip()
    apply_override(config, "model.image.image_size=(8, 16)")
    config.mesh.update(fsdp=4, zero1=True)
    config.optim.ema_decay = 0.9
    config.compute.remat = "full"
    return config


def bytes_on_first_device(tree):
    first = jax.devices()[0]
    shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == first]
    return sum(shard.data.nbytes for shard in shards)


def test_bytes_are_those_of_the_real_state(plan):
    experiment = build(sharded_config(), data=False)
    state = experiment.init_state()
    assert plan.parameter_bytes == bytes_on_first_device(state.params)
    assert plan.optimizer_bytes == bytes_on_first_device((state.opt_state, state.ema))
    batch = random_batch(experiment)
    assert plan.argument_bytes == bytes_on_first_device((state, batch))


def test_fields(plan):
    fields = json.loads(plan.to_json())
    assert fields["topology"] == "cpu-8"
    assert fields["image_size"] == [8, 16]  # height, width
    assert plan.mesh == {"data": 2, "fsdp": 4, "tensor": 1}
    assert plan.peak_hbm_bytes > plan.argument_bytes + plan.temporary_bytes - 1
    assert plan.executed_flops_per_device > plan.model_flops_per_device > 0
    assert plan.collective_bytes["all-gather"] > 0
    assert sum(plan.collective_bytes_by_contents.values()) == pytest.approx(
        sum(plan.collective_bytes.values()), rel=0.01
    )
    # Simulated devices have no estimates of time and no limit of memory.
    for name in ("fits", "estimated_compute_ms", "estimated_fraction_of_peak", "collective_ms"):
        assert fields[name] is None


def test_table(plan):
    text = report.table(plan)
    assert "cpu-8: 8 devices, mesh data=2, fsdp=4, tensor=1" in text
    assert "8 x 16 px" in text
    assert "not estimated" in text
    assert "all-gather" in text


def test_contents_of_collectives():
    state = build(sharded_config(), data=False).abstract_state
    contents = Contents(state.params, batch_size=48, batch_shards=2)
    # The kernel of the MLP: the stack, one layer of it, and the shard of one of four devices.
    for shape in ((2, 32, 64), (1, 32, 64), (64, 32), (1, 8, 64)):
        assert contents.classify(shape) == "parameters"
    for shape in ((48, 16), (24, 5, 32), (48 * 5, 32)):
        assert contents.classify(shape) == "activations"
    assert contents.classify(()) == contents.classify((1, 5)) == "other"


def test_suggestions(plan):
    gib = 2**30
    small = dataclasses.replace(
        plan, fits=True, hbm_bytes=16 * gib, peak_hbm_bytes=3 * gib, temporary_bytes=2 * gib
    )
    assert report.suggestions(small) == [
        "--config.compute.remat=dots: 25% of the work is recomputation",
        "--config.batch_size=128, if the recipe allows",
    ]
    full = dataclasses.replace(small, peak_hbm_bytes=15 * gib)
    assert report.suggestions(full) == []
    over = dataclasses.replace(plan, fits=False, remat="none", mesh={"data": 8, "fsdp": 1})
    assert [tip.split("=")[0] for tip in report.suggestions(over)] == [
        "--config.compute.remat",
        "--config.grad_accum_steps",
        "--config.batch_size",
        "--config.mesh.fsdp",
    ]
    split = dataclasses.replace(over, grad_accum_steps=8, remat="mlp")
    assert report.suggestions(split)[0].startswith("--config.compute.remat=dots:")
    assert report.suggestions(split)[1].startswith("--config.grad_accum_steps=16:")
    assert "NO" in report.table(dataclasses.replace(over, mesh={"data": 8, "fsdp": 1}))


def test_memory_that_does_not_suffice():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (32.00G) exceeds available HBM (15.75G). HLO module: jit_f."
    )

    class Lowered(jax.stages.Lowered):
        def __init__(self):
            pass

        def compile(self):
            raise jax.errors.JaxRuntimeError(message + "\nSee https://openxla.org")

    compiled, error = compilation.compile_or_error(Lowered())
    assert (compiled, error) == (None, message)
    fields = compilation.memory_fields(compiled, error, CHIPS["v5e"])
    assert fields == {"fits": False, "hbm_bytes": 16 * 2**30, "peak_hbm_bytes": 32 * 2**30}


def test_sizes_in_messages():
    assert demanded_bytes("Used 512.5M of 256M hbm") == int(512.5 * 2**20)
    assert demanded_bytes("RESOURCE_EXHAUSTED: for another reason") is None
    assert format_bytes(1.5 * 2**30) == "1.50 GiB"
    assert format_bytes(100) == "100 B"
    assert format_bytes(None) == "unknown"


@pytest.mark.parametrize(
    ("name", "num_slices", "message"),
    [
        ("v5x:16x16", 1, "unknown topology 'v5x:16x16'; did you mean 'v5"),
        ("v5e", 1, "did you mean 'v5e:"),
        ("cpu8", 1, "did you mean 'cpu-8'"),
        ("cpu-0", 1, "expected cpu-N"),
        ("cpu-8", 2, "--num_slices=1"),
        ("v5e:4x4", 0, "--num_slices=0"),
    ],
)
def test_unknown_slices(name, num_slices, message):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        find_slice(name, num_slices)
    assert message in str(error.value)


def test_missing_libtpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vit_jax\[plan\]'"):
        find_slice("v5e:2x2")


def test_batch_is_checked_before_compiling():
    config = helpers.tiny_clip()
    config.batch_size = 36
    with pytest.raises(UserError, match="not a multiple of the 8 devices; try 32 or 40"):
        compilation.make_plan(config, find_slice("cpu-8"))
    config.mesh.fsdp = 3
    with pytest.raises(UserError, match="does not divide 8 devices"):
        compilation.make_plan(config, find_slice("cpu-8"))


def test_command():
    quick = (
        "--config.model.image.depth=1",
        "--config.model.image.patch_size=16",
        "--config.model.text.depth=1",
        "--config.batch_size=8",
        "--config.eval_batch_size=8",
    )
    done = helpers.run_command(
        "plan", "--config", "configs/clip_emoji.py", "--topology=cpu-4", "--json", *quick
    )
    assert json.loads(done.stdout)["devices"] == 4


@pytest.mark.release
@pytest.mark.tpu_compile
def test_tpu(libtpu):
    config = helpers.tiny_clip()
    config.mesh.fsdp = 2
    found = compilation.make_plan(config, find_slice("v5e:2x2"))
    assert found.fits
    assert 0 < found.estimated_fraction_of_peak < 1
    assert found.peak_hbm_bytes < CHIPS["v5e"].hbm_bytes
    assert {"all-gather", "reduce-scatter"} <= set(found.collective_bytes)
    assert found.unestimated["loops"] == 0
    several = compilation.make_plan(config, find_slice("v5e:2x2", num_slices=2))
    assert several.devices == 8
    assert several.collective_bytes["between-slices"] > 0
