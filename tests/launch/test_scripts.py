"""Scripts and manifests that start runs, tested without a cloud."""

import copy
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
TOOLS = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
SCRIPTS = sorted([*ROOT.glob("launch/*.s*"), *ROOT.glob("benchmarks/*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    environment = {**os.environ, "PATH": TOOLS}
    done = subprocess.run(
        ["shellcheck", script], env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


def tpu_pod(*args, code=0):
    command = [LAUNCH / "tpu_pod.sh", *args]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr if code else [shlex.split(line) for line in done.stdout.splitlines()]


SLICE = ("--name", "b16", "--zone", "us-west4-a", "--dry-run")
TRAIN = ("--", "--config", "configs/a b.py", "--workdir", "runs/b16", "--config.optim.lr=1e-3")


def test_create_and_delete():
    options = ("--type", "v5litepod-64", "--spot", "--project", "p")
    (created,) = tpu_pod("create", *SLICE, *options)
    assert created[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "b16"]
    assert created[6:] == [
        "--zone=us-west4-a",
        "--project=p",
        "--accelerator-type=v5litepod-64",
        "--version=tpu-ubuntu2204-base",
        "--spot",
    ]
    assert tpu_pod("delete", *SLICE) == [
        ["gcloud", "compute", "tpus", "tpu-vm", "delete", "b16", "--zone=us-west4-a", "--quiet"]
    ]


def test_setup_copies_the_checkout_and_mounts_the_bucket():
    archive, copied, installed = tpu_pod("setup", *SLICE, "--bucket", "my-runs")
    assert archive[0] == "git"
    assert copied[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert "--worker=all" in copied
    command = installed[-1].removeprefix("--command=")
    assert "pip install -q -e '.[tpu]'" in command
    assert "gcsfuse --implicit-dirs 'my-runs' runs" in command
    subprocess.run(["bash", "-n", "-c", command], check=True)


def test_run_restarts_after_preemption_only(tmp_path):
    """Executes the command for the hosts, with a fake Python that is preempted twice."""
    (started,) = tpu_pod("run", *SLICE, *TRAIN)
    assert "--worker=all" in started
    python = tmp_path / "vit_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    fake_python(python, [75, 75, 3])
    command = started[-1].removeprefix("--command=")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False)
    assert done.returncode == 3
    calls = (python.parent / "calls").read_text().splitlines()
    arguments = "-m vit_jax.train --config configs/a b.py --workdir runs/b16"
    assert calls == [f"{arguments} --config.optim.lr=1e-3"] * 3


def fake_python(path, codes):
    """Writes an executable that logs its arguments and exits with one code after another."""
    lines = "\n".join(f"  {i + 1}) exit {code} ;;" for i, code in enumerate(codes))
    path.write_text(
        "#!/usr/bin/env bash\n"
        f'[ "$1" = -c ] && exec {sys.executable} "$@"\n'
        f'echo "$*" >> {path.parent}/calls\n'
        f"case $(wc -l < {path.parent}/calls) in\n{lines}\nesac\n"
    )
    path.chmod(0o755)


def test_resume_recreates_the_slice():
    options = ("--type", "v5litepod-64", "--bucket", "my-runs")
    commands = tpu_pod("resume", *SLICE, *options, *TRAIN)
    verbs = [line[4] for line in commands if line[0] == "gcloud"]
    assert verbs == ["delete", "create", "scp", "ssh", "ssh"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["destroy"], "create   create the slice"),
        (["run", *SLICE], "run needs the arguments of vit_jax.train after --"),
        (["create", "--name", "x", "--dry-run"], "create needs --zone"),
        (["create", "--nam", "x"], "--name b16"),
        (["create", "--name"], "--name b16"),
    ],
)
def test_wrong_tpu_commands(args, message):
    assert message in tpu_pod(*args, code=2)


@pytest.mark.parametrize(
    ("codes", "code", "starts"), [([75, 75, 0], 0, 3), ([2], 2, 1), ([75, 137], 137, 2)]
)
def test_local_processes_restart_after_preemption_only(tmp_path, codes, code, starts):
    fake_python(tmp_path / "python3", codes)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [LAUNCH / "local.sh", "1", "--config", "x"], env=environment, check=False, timeout=60
    )
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["-m vit_jax.train --config x"] * starts


def test_local_processes_end_together_without_a_word(tmp_path):
    """The status of each is read once, also if several end at the same time."""
    for codes, code in (([0, 0, 0], 0), ([0, 0, 137], 137)):
        (tmp_path / "calls").unlink(missing_ok=True)
        fake_python(tmp_path / "python3", codes)
        done = subprocess.run(
            [LAUNCH / "local.sh", "3", "--config", "x"], text=True, capture_output=True,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == code
        assert done.stderr == ""


MANIFESTS = list(yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text()))
SCHEMA = json.loads((pathlib.Path(__file__).parent / "jobset_schema.json").read_text())


def jobs_of(manifest):
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": replicated["name"]},
            "spec": replicated["template"]["spec"],
        }
        for replicated in manifest["spec"]["replicatedJobs"]
    ]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda m: m["metadata"]["name"])
def test_manifest_matches_the_schemas(manifest):
    jsonschema.validate(manifest, SCHEMA)
    for job in jobs_of(manifest):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert job["spec"]["completions"] == job["spec"]["parallelism"]
        environment = {entry["name"]: entry.get("value") for entry in container.get("env", ())}
        if "JAX_NUM_PROCESSES" in environment:
            assert int(environment["JAX_NUM_PROCESSES"]) == job["spec"]["completions"]
            host = environment["JAX_COORDINATOR_ADDRESS"].partition(".")[0]
            assert host == f"{manifest['metadata']['name']}-{job['metadata']['name']}-0-0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "failurePolicy", "rules", 0, "action"), "Restart"),
        (("spec", "failurePolicy", "maxRestart"), 1),
        (("spec", "replicatedJobs", 0, "replicas"), "one"),
        (("metadata", "name"), "Vit_Jax"),
    ],
)
def test_the_jobset_schema_refuses(path, value):
    broken = copy.deepcopy(MANIFESTS[0])
    node = broken
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_the_job_schema_refuses():
    (job,) = jobs_of(copy.deepcopy(MANIFESTS[0]))
    job["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_all_start_the_same_command():
    """Manifests contain only arguments; the command is the entry point of the container."""
    entry = re.search(r"ENTRYPOINT (\[.*\])", (LAUNCH / "Dockerfile").read_text())
    assert json.loads(entry[1]) == ["python", "-m", "vit_jax.train"]
    for script in ("local.sh", "slurm.sbatch", "tpu_pod.sh"):
        assert "-m vit_jax.train" in (LAUNCH / script).read_text()
    for manifest in MANIFESTS:
        for job in jobs_of(manifest):
            (container,) = job["spec"]["template"]["spec"]["containers"]
            assert "command" not in container
            assert "--workdir" in container["args"]


def test_the_container_copies_existing_files():
    for line in (LAUNCH / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            assert all((ROOT / name).exists() for name in line.split()[1:-1])
