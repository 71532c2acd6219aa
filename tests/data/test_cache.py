"""The cache folder of users without a home folder, or whose folders cannot be written."""

import logging
import os
import pathlib
import pwd
import shutil
import subprocess
import sys
import tempfile

import pytest

from tests.helpers import ROOT
from vit_jax.data import cache
from vit_jax.data.embedded import emoji
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError

BLOCKED = "/proc/no_such_folder"  # where nobody can write, not even root


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """A user without variables, with an empty folder of temporary files."""
    for name in ("VIT_JAX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    cache._is_writable.cache_clear()
    cache._fallback.cache_clear()
    yield
    cache._fallback.cache_clear()


@pytest.fixture
def nobody(monkeypatch):
    """A user without an entry in the table of passwords."""

    def absent(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", absent)


@pytest.fixture
def fallback(tmp_path):
    """The folder that is used instead."""
    return tmp_path / "tmp" / f"vit_jax-{os.getuid()}"


@pytest.mark.parametrize("name", ["VIT_JAX_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_folders_that_cannot_be_written_have_a_substitute(name, monkeypatch, fallback, caplog):
    monkeypatch.setenv(name, BLOCKED)
    with caplog.at_level(logging.WARNING, "vit_jax"):
        assert cache.cache_dir() == cache.cache_dir() == fallback
    assert fallback.stat().st_mode & 0o777 == 0o700
    (record,) = caplog.records
    assert BLOCKED in record.message
    assert "set VIT_JAX_CACHE to a folder that can be written" in record.message


def test_users_without_a_home_folder(nobody, fallback, caplog):
    with caplog.at_level(logging.WARNING, "vit_jax"):
        assert cache.cache_dir() == fallback
    assert "because there is no home folder" in caplog.text


def test_no_folder_can_be_written(nobody, fallback, monkeypatch):
    fallback.write_text("a file is in the way")
    with pytest.raises(UserError, match=r"no folder for cached files.*set VIT_JAX_CACHE"):
        cache.cache_dir()
    monkeypatch.setenv("VIT_JAX_CACHE", "gs://bucket/cache")
    with pytest.raises(UserError, match="gs://bucket/cache is a URL: expected a local path"):
        cache.cache_dir()


def test_files_in_a_read_only_cache_are_used(monkeypatch, tmp_path, fallback):
    (tmp_path / "own" / "emoji").mkdir(parents=True)
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(cache, "_is_writable", lambda folder: folder == fallback)
    assert cache.find_cached("emoji") == tmp_path / "own" / "emoji"
    assert cache.find_cached("tar_index/x") == fallback / "tar_index" / "x"


def test_sources_of_users_without_a_cache(nobody, monkeypatch, tmp_path, two_classes, fallback):
    monkeypatch.setenv("VIT_JAX_CACHE", BLOCKED)
    shutil.make_archive(str(tmp_path / "shard"), "tar", two_classes, "cat")
    source = open_source(f"tar:{tmp_path}/shard.tar")
    assert len(source) == 3
    assert list((fallback / "tar_index").glob("*.rows"))
    monkeypatch.setattr(emoji, "_build_into", lambda final, sources: final.mkdir())
    assert emoji.build().parent == fallback / "emoji"


@pytest.mark.release
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_commands_of_a_user_without_home_and_password_entry(tmp_path):
    """Imports, plots, shards and training, as a user that may read everything."""
    work = tempfile.mkdtemp(dir="/tmp")
    os.chmod(work, 0o777)
    recipe = pathlib.Path(work) / "recipe.py"
    recipe.write_text(
        "from tests.helpers import tiny_clip\n\n"
        "def get_config(arg=''):\n    config = tiny_clip()\n    config.total_steps = 4\n"
        "    config.evals = {}\n    return config\n"
    )
    read_all = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    user = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", *read_all)
    environment = {k: v for k, v in os.environ.items() if k not in ("USER", "LOGNAME", "TMPDIR")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for command in (
        ("train", "--config", recipe, "--workdir", f"{work}/run"),
        ("report", f"{work}/run", "--plots", f"{work}/plots"),
        ("data.prepare", "--input", "digits:test[:20]", "--output", f"{work}/x", "--format=tar"),
    ):
        done = subprocess.run(
            [*user, sys.executable, "-m", f"vit_jax.{command[0]}", *map(str, command[1:])],
            env=environment, cwd=work, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    shutil.rmtree(work)
