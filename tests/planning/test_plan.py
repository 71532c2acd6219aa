"""Plans beside the truth, on simulated devices; for a TPU with `-m tpu_compile` and libtpu."""

import dataclasses
import json

import jax
import pytest

from tests.conftest import tiny
from tests.test_commands import command
from vit_jax.errors import UserError
from vit_jax.planning import compilation, report
from vit_jax.planning.contents import Contents
from vit_jax.planning.topologies import CHIPS, find_slice
from vit_jax.training import assembly


@pytest.fixture(scope="module")
def plan():
    """A tiny run with FSDP, ZeRO and a moving average."""
    return compilation.make_plan(sharded_config(), find_slice("cpu-8"))


def sharded_config():
    config = tiny()
    config.mesh.update(fsdp=4, zero1=True)
    config.optim.ema_decay = 0.9
    config.compute.remat = "full"
    return config


def bytes_on_first_device(tree):
    first = jax.devices()[0]
    shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == first]
    return sum(shard.data.nbytes for shard in shards)


def test_bytes_are_those_of_the_real_state(plan):
    config = sharded_config()
    mesh = assembly.build_mesh(config)
    program = assembly.build_program(config, mesh, warmup_steps=1, total_steps=10)
    state = program.init()
    assert plan.parameter_bytes == bytes_on_first_device(state.params)
    assert plan.optimizer_bytes == bytes_on_first_device((state.opt_state, state.ema))
    batch = assembly.random_batch(config, mesh)
    assert plan.argument_bytes == bytes_on_first_device((state, batch))


def test_what_a_plan_says(plan):
    fields = json.loads(plan.to_json())
    assert {
        "fits", "peak_hbm_bytes", "argument_bytes", "temporary_bytes", "parameter_bytes",
        "optimizer_bytes", "model_flops_per_chip", "estimated_compute_ms", "collective_ms",
        "estimated_share_of_peak", "collective_bytes", "unestimated", "compile_seconds",
    } <= set(fields)  # fmt: skip
    assert plan.mesh == {"data": 2, "fsdp": 4, "tensor": 1}
    assert plan.peak_hbm_bytes > plan.argument_bytes + plan.temporary_bytes - 1
    assert plan.model_flops_per_chip == pytest.approx(plan.traced_flops_per_chip, rel=0.02)
    assert plan.executed_flops_per_chip > plan.traced_flops_per_chip
    assert plan.collective_bytes["all-gather"] > 0
    assert sum(plan.collective_contents.values()) == pytest.approx(
        sum(plan.collective_bytes.values()), rel=0.01
    )
    # Nothing is known of the time on simulated devices, and they have no limit.
    for name in ("fits", "estimated_compute_ms", "estimated_share_of_peak", "collective_ms"):
        assert fields[name] is None


def test_table(plan):
    text = report.table(plan)
    assert "cpu-8: 8 devices, mesh data=2, fsdp=4, tensor=1" in text
    assert "not estimated" in text
    assert "all-gather" in text


def test_contents_of_exchanges():
    config = sharded_config()
    mesh = assembly.build_mesh(config)
    program = assembly.build_program(config, mesh, warmup_steps=1, total_steps=10)
    contents = Contents(program.abstract.params, batch_size=48, batch_shards=2)
    # The MLP's kernel, a layer of it, whole and as one of four devices holds it.
    for shape in ((2, 32, 64), (1, 32, 64), (64, 32), (1, 8, 64)):
        assert contents.of(shape) == "parameters"
    for shape in ((48, 16), (24, 5, 32), (48 * 5, 32)):
        assert contents.of(shape) == "activations"
    assert contents.of(()) == contents.of((1, 5)) == "others"


def test_suggestions(plan):
    gib = 2**30
    small = dataclasses.replace(
        plan, fits=True, hbm_bytes=16 * gib, peak_hbm_bytes=3 * gib, temporary_bytes=2 * gib
    )
    assert report.suggestions(small) == [
        "--config.compute.remat=dots: 25% of the work is repeated",
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
    assert compilation.demanded_bytes(message) == 32 * 2**30
    assert compilation.demanded_bytes("Used 512.5M of 256M hbm") == int(512.5 * 2**20)
    assert compilation.demanded_bytes("RESOURCE_EXHAUSTED: for another reason") is None

    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(message + "\nSee https://openxla.org")

    compiled, error = compilation._compile(Lowered())
    assert compiled is None
    assert compilation._memory(compiled, error, 16 * 2**30)["fits"] is False
    assert error == message


@pytest.mark.parametrize(
    ("name", "num_slices", "message"),
    [
        ("v5x:16x16", 1, "unknown topology 'v5x:16x16'; did you mean 'v5"),
        ("v5e", 1, "did you mean 'v5e:"),
        ("cpu8", 1, "did you mean 'cpu-8'"),
        ("cpu-0", 1, "expected cpu-N"),
        ("cpu-8", 2, "in one slice"),
        ("v5e:4x4", 0, "--num_slices=0"),
    ],
)
def test_unknown_slices(name, num_slices, message):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        find_slice(name, num_slices)
    assert message in str(error.value)


def test_missing_libtpu_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vit_jax\[plan\]'"):
        find_slice("v5e:2x2")


def test_batch_is_checked_before_compiling():
    config = tiny()
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
    done = command(
        "plan", "--config", "configs/clip_emoji.py", "--topology=cpu-4", "--json", *quick
    )
    assert json.loads(done.stdout)["devices"] == 4


@pytest.mark.tpu_compile
def test_tpu():
    config = tiny()
    config.mesh.fsdp = 2
    found = compilation.make_plan(config, find_slice("v5e:2x2"))
    assert found.fits
    assert 0 < found.estimated_share_of_peak < 1
    assert found.peak_hbm_bytes < CHIPS["v5e"].hbm_bytes
    assert {"all-gather", "reduce-scatter"} <= set(found.collective_bytes)
    assert found.unestimated["loops"] == 0
    several = compilation.make_plan(config, find_slice("v5e:2x2", num_slices=2))
    assert several.devices == 8
    assert several.collective_bytes["between-slices"] > 0
