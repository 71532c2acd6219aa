"""Sweeps: variants of a recipe, on this machine, as a Slurm array and as a JobSet."""

import json
import sys
import types

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.helpers import ROOT
from vit_jax import interruption, recipes
from vit_jax.errors import Interrupted, UserError
from vit_jax.reporting.groups import group_rows, group_seeds
from vit_jax.reporting.runs import Curve, RunRecord
from vit_jax.sweeping import gke, grid, local, seeds, slurm
from vit_jax.sweeping.cost import training_cost
from vit_jax.sweeping.variants import FINISHED, NEW, STARTED, load_variants

RECIPE = "tests/sweeping/recipe.py"


@pytest.fixture(scope="module")
def variants():
    return load_variants(RECIPE, ["total_steps=6"])


def test_grid_and_seeds():
    found = grid({"optim.lr": (0.1, 0.2), "model": ("vit_b16",)})
    assert found == {
        "lr=0.1,model=vit_b16": {"optim.lr": 0.1, "model": "vit_b16"},
        "lr=0.2,model=vit_b16": {"optim.lr": 0.2, "model": "vit_b16"},
    }
    assert seeds({"a": {"x": 1}}, 2) == {
        "a,seed=0": {"x": 1, "seed": 0},
        "a,seed=1": {"x": 1, "seed": 1},
    }


def test_variants_have_the_changed_configs(variants):
    assert len(variants) == 8
    last = variants[-1]
    assert last.name == "lr=0.003,depth=2,seed=1"
    assert (last.config.optim.lr, last.config.model.depth, last.config.seed) == (3e-3, 2, 1)
    assert last.config.total_steps == 6
    arguments = last.train_arguments("runs/x/")
    assert arguments[:4] == ["--config", RECIPE, "--workdir", f"runs/x/{last.name}"]
    changes = [argument.removeprefix("--config.") for argument in arguments[4:]]
    again = recipes.load_recipe(RECIPE, changes)
    assert again.to_dict() == last.config.to_dict()


@pytest.mark.parametrize(
    ("sweep", "overrides", "message"),
    [
        (None, (), r"has no function get_sweep\(\)"),
        ([1], (), r"get_sweep returned \[1\], expected a dict of variants by name"),
        ({}, (), r"get_sweep returned \{\}"),
        ({"a/b": {}}, (), r"the variant 'a/b' is no folder name"),
        ({"a": {"optim.lrr": 1}}, (), r"variant 'a'.*did you mean"),
        ({"a": {"batch_size": "x"}}, (), r"variant 'a': config.batch_size='x': expected"),
        ({"a": {"model.dept": 3}}, (), r"variant 'a'.*depth"),
        ({"a": {"seed": 1}}, ("seed=2",), r"--config.seed: the variant 'a' .* changes this key"),
    ],
)
def test_wrong_sweeps(monkeypatch, sweep, overrides, message):
    module = types.SimpleNamespace()
    if sweep is not None:
        module.get_sweep = lambda: sweep
    monkeypatch.setattr("vit_jax.sweeping.variants.recipe_module", lambda recipe: module)
    with pytest.raises(UserError, match=message):
        load_variants(RECIPE, overrides)


def write_run(folder, variant, *, finished):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(variant.resolved_config.to_dict()))
    if finished:
        (folder / "result.json").write_text("{}")


def test_state_of_a_variant(variants, tmp_path):
    first, other = variants[0], variants[-1]
    folder = tmp_path / first.name
    assert first.state(str(tmp_path)) == NEW
    write_run(folder, first, finished=False)
    assert first.state(str(tmp_path)) == STARTED
    (folder / "result.json").write_text("{}")
    assert first.state(str(tmp_path)) == FINISHED
    (folder / "config.json").write_text(json.dumps(other.resolved_config.to_dict()))
    with pytest.raises(UserError, match=r"optim\.lr: 0\.003 -> 0\.001.* it is finished"):
        first.state(str(tmp_path))


def replace_training(monkeypatch, codes):
    """Lets processes exit with these codes in turn instead of training."""
    left = iter(codes)

    def command(variant, workdir):
        return [sys.executable, "-S", "-c", f"raise SystemExit({next(left)})"]

    monkeypatch.setattr(local, "train_command", command)


def test_a_failed_variant_does_not_stop_the_others(monkeypatch, variants):
    replace_training(monkeypatch, [0, 2, 0])
    assert local.train_all(variants[:3], "x") == {variants[1].name: 2}


def test_an_interrupted_variant_stops_the_sweep(monkeypatch, variants):
    replace_training(monkeypatch, [0, interruption.RESUMABLE, 0])
    with pytest.raises(Interrupted, match="the same command continues"):
        local.train_all(variants[:3], "x")


def test_cost(variants):
    """Twice the blocks are less than twice the FLOPs, since the embedding and the head stay."""
    shallow, deep = (training_cost(variants[i], None) for i in (0, 2))
    assert variants[0].config.model.depth == 1
    assert 1.5 < deep.flops / shallow.flops < 2
    assert shallow.hours is None


def record(name, seed, lr, value):
    return RunRecord(name, {"seed": seed, "optim.lr": lr}, {"top1": Curve([1, 2], [0.0, value])})


def test_seeds_are_one_column():
    runs = [
        record("a,seed=0", 0, 0.1, 0.5),
        record("b", 0, 0.2, 0.25),
        record("a,seed=1", 1, 0.1, 0.75),
    ]
    assert group_rows(group_seeds(runs)) == [
        ["last metrics", "a (2 seeds)", "b (1 seeds)"],
        ["top1", "0.6250 +- 0.1768", "0.2500"],
    ]


def test_slurm_command(tmp_path):
    arguments = ["--config=c.py", "--workdir=w"]
    command = slurm.submit_command([1, 3], arguments, ["--nodes=1"], slurm.SCRIPT)
    assert command[:4] == ["sbatch", "--array=1,3", "--export=ALL,VIT_JAX_SWEEP=1", "--nodes=1"]
    assert command[4:] == [str(ROOT / "launch" / "slurm.sbatch"), *arguments]
    with pytest.raises(UserError, match=r"no script .*/x: give the path of launch/slurm.sbatch"):
        slurm.submit_command([1], arguments, [], tmp_path / "x")


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
def test_jobset_has_one_index_per_variant(accelerator):
    jobset = gke.manifest(gke.MANIFEST, accelerator, "loss", 8, ["--config=c.py", "--workdir=w"])
    jobset = yaml.safe_load(gke.to_yaml(jobset))
    schema = json.loads((ROOT / "tests" / "launch" / "jobset_schema.json").read_text())
    jsonschema.validate(jobset, schema)
    job = jobset["spec"]["replicatedJobs"][0]["template"]
    spec = job["spec"]
    kubernetes_validate.validate(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec},
        "1.31",
        strict=True,
    )
    assert (spec["completions"], spec["completionMode"]) == (8, "Indexed")
    container = spec["template"]["spec"]["containers"][0]
    assert container["args"][-1] == "--index=$(JOB_COMPLETION_INDEX)"
    assert "backoffLimit" not in spec


def test_wrong_manifests(tmp_path):
    with pytest.raises(UserError, match=r"no manifest .*: give that of launch/gke_jobset.yaml"):
        gke.manifest(tmp_path / "x", "tpu", "a", 1, [])
    with pytest.raises(UserError, match=r"no JobSet with the label accelerator=cpu"):
        gke.manifest(gke.MANIFEST, "cpu", "a", 1, [])
