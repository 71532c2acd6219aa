"""What each start of a run records, in repositories and outside of them."""

import json
import subprocess

import pytest

from vit_jax import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text("a = 1\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def starts(workdir):
    lines = (workdir / "provenance" / "starts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_commit_versions_and_devices(repository):
    workdir = repository / "run"
    provenance.record(workdir)
    (start,) = starts(workdir)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert start["commit"] == head.stdout.strip()
    assert "changes" not in start
    assert start["devices"] == "8 x cpu"
    assert {"jax", "flax", "optax"} < start["packages"].keys()
    assert start["command"].startswith("python")


def test_uncommitted_changes_are_kept_once(repository):
    workdir = repository / "run"
    (repository / "recipe.py").write_text("a = 2\n")
    provenance.record(workdir)
    provenance.record(workdir)
    first, second = starts(workdir)
    assert first["changes"] == second["changes"]
    (kept,) = (workdir / "provenance").glob("*.diff")
    assert kept.name == first["changes"]
    assert "+a = 2" in kept.read_text()
    (repository / "recipe.py").write_text("a = 3\n")
    provenance.record(workdir)
    assert len(list((workdir / "provenance").glob("*.diff"))) == 2


def test_outside_of_repositories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    provenance.record(tmp_path / "run")
    (start,) = starts(tmp_path / "run")
    assert start["commit"] is None
    assert "changes" not in start
