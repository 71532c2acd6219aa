"""Paths of users: URLs, files in buckets, and URLs that are refused before anything is written."""

import ast
import contextlib
import json
import pathlib

import fsspec
import numpy as np
import pytest
from etils.epath import backend

from tests.helpers import ROOT, tiny_clip
from tests.test_report import write_run
from vit_jax import evaluation, experiment, paths, recipes, report
from vit_jax.atomic_files import append_text, atomic_write, write_text
from vit_jax.checkpoint.manager import Checkpoints, has_checkpoint
from vit_jax.data import images, preparation
from vit_jax.data.sources import open_source
from vit_jax.data.tokenizers import Tokenizer, open_tokenizer
from vit_jax.data.tokenizers.trained import TrainedEncoder
from vit_jax.errors import UserError
from vit_jax.evaluators import metrics
from vit_jax.evaluators.results import EvaluationLog
from vit_jax.pretrained.fetching import fetch_weights
from vit_jax.pretrained.model import create_model
from vit_jax.tracking import Trackers
from vit_jax.weights.containers.writing import write_tensors

URL = "gs://bucket/folder"
S3 = "s3://bucket/folder"


@pytest.fixture
def bucket(monkeypatch):
    """URL of a folder in a bucket, which is in memory."""
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: memory)
    monkeypatch.setattr(paths, "_PACKAGES", {})
    yield URL
    memory.store.clear()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Runs each test in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [URL, "s3://b/x", "https://h/x", "memory://x", "zip://a.png::s3://b/x.zip", pathlib.Path(URL)],
)
def test_urls(path):
    assert paths.is_url(path)
    with pytest.raises(UserError, match="is a URL: expected a local path, because it is mapped"):
        paths.as_local_path(path, "it is mapped")


@pytest.mark.parametrize("path", ["/data/x", "x.tar", "a/b:c", "C:/x", "x#key", "", "run:1/x"])
def test_local_paths(path):
    assert not paths.is_url(path)
    assert paths.as_local_path(path, "") == pathlib.Path(path)


def test_local_urls_and_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for given in ("file:///data/x", pathlib.Path("file:///data/x")):
        assert paths.as_local_path(given, "") == pathlib.Path("/data/x")
        assert str(paths.as_path(given)) == "/data/x"
    assert str(paths.as_path("~/x")) == "/home/someone/x"
    with pytest.raises(UserError, match="the home folder is not known"):
        paths.as_path("~nobody-of-this-name/x")


@pytest.mark.parametrize("url", ["hdfs://h/x", "GS://b/x", "memory://x", pathlib.Path(URL)])
def test_other_urls_are_refused(url):
    with pytest.raises(UserError, match="expected a local path, gs:// or s3://"):
        write_text(url, "x")


REFUSED = {
    "train": lambda: experiment.train(tiny_clip(), S3),
    "train, as a path": lambda: experiment.train(tiny_clip(), pathlib.Path(URL)),
    "evaluate": lambda: evaluation.open_run(S3),
    "checkpoints": lambda: Checkpoints(S3),
    "has_checkpoint": lambda: has_checkpoint(S3),
    "weights": lambda: create_model("vit_ti16", "https://h/x.safetensors"),
    "prepare": lambda: preparation.prepare("digits:test", URL),
    "recipe": lambda: recipes.load_recipe(f"{URL}/recipe.py:small"),
    "tensorboard": lambda: Trackers.check({"tensorboard": {"folder": URL}}),
    "jsonl": lambda: Trackers.check({"jsonl": {"file": URL}}),
    "tfds": lambda: open_source(f"tfds:{URL}:train"),
    "tfds folder": lambda: open_source(f"tfds:mnist:train?data_dir={URL}"),
    "array_record": lambda: open_source("arrayrecord:memory://x/*.array_record"),
}


@pytest.mark.parametrize("place", REFUSED)
def test_what_must_be_local_is_refused_before_anything_is_written(place, empty_folder):
    with pytest.raises(UserError, match=r"local|no file"):
        REFUSED[place]()
    assert not list(empty_folder.iterdir())


def test_files_in_buckets(bucket, empty_folder):
    with atomic_write(f"{bucket}/x.txt") as partial:
        partial.write_bytes(b"abc")
    for text in ("", "1\n", "2\n"):
        append_text(f"{bucket}/lines", text)
    assert paths.as_path(f"{bucket}/x.txt").read_bytes() == b"abc"
    assert paths.as_path(f"{bucket}/lines").read_text() == "1\n2\n"
    with contextlib.suppress(KeyError), atomic_write(f"{bucket}/y.txt") as partial:
        partial.write_bytes(b"half")
        raise KeyError
    assert not paths.as_path(f"{bucket}/y.txt").exists()
    assert not list(empty_folder.iterdir())


def test_reports_read_and_write_buckets(bucket, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "run", {"seed": 0}, [{"step": s, "loss": 3.0 / s} for s in (1, 2)])
    for file in run.iterdir():
        write_text(f"{bucket}/run/{file.name}", file.read_text())
    report.report([f"{bucket}/run"], f"{bucket}/plots")
    assert "loss          1.5000" in capsys.readouterr().out
    plot = f"{bucket}/plots/curves.png"
    assert images.read_image(plot).shape[2] == 4
    names = ["a", "b"]
    metrics.write_confusion(f"{bucket}/matrix.csv", np.array([0, 1]), np.array([1, 1]), names)
    assert "b,1,1" in paths.as_path(f"{bucket}/matrix.csv").read_text()


def test_evaluations_are_logged_in_buckets(bucket):
    for step in (1, 2):
        log = EvaluationLog(bucket, "run", step)
        log.write({"top1": 0.5})
        log.close()
    lines = paths.as_path(f"{bucket}/evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_tokenizers_and_tensors_in_buckets(bucket):
    encoder = TrainedEncoder.train(["a red fox", "a blue fox"] * 10, 300)
    Tokenizer(encoder, vocab_size=300, context_length=8).save(f"{bucket}/t")
    saved = open_tokenizer(f"saved:{bucket}/t", vocab_size=300, context_length=8)
    assert saved(["a red fox"]).shape == (1, 8)
    write_tensors(f"{bucket}/w.npz", {"x": np.arange(3)}, container="npz")
    with paths.as_path(f"{bucket}/w.npz").open("rb") as file:
        assert np.load(file)["x"].tolist() == [0, 1, 2]


def test_weights_in_buckets_are_downloaded(bucket, monkeypatch, tmp_path):
    """With the descriptions beside them, again when they change; runs stay where they are."""
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    files = {"model.safetensors.index.json": json.dumps(index), "config.json": "{}"}
    files |= {"1.safetensors": "one", "2.safetensors": "two", "image.png": "", "3.safetensors": ""}
    for name, text in files.items():
        write_text(f"{bucket}/m/{name}", text)
    local = fetch_weights(f"{bucket}/m")
    expected = sorted(files.keys() - {"image.png", "3.safetensors"})
    assert sorted(path.name for path in local.parent.iterdir()) == expected
    assert fetch_weights(f"{bucket}/m/1.safetensors#ema").name == "1.safetensors#ema"
    write_text(f"{bucket}/m/2.safetensors", "changed")
    changed = fetch_weights(f"{bucket}/m/model.safetensors.index.json")
    assert (changed.parent / "2.safetensors").read_text() == "changed"
    for url, reason in ((f"{bucket}/no", "no weight file"), (bucket, "expected one of")):
        with pytest.raises(UserError, match=reason):
            fetch_weights(url)
    write_text(f"{bucket}/checkpoints/10/x", "")
    assert str(fetch_weights(bucket)) == bucket


def test_paths_of_users_go_through_one_module():
    """`pathlib.Path(x)` elsewhere has a constant or a path that is local for certain."""
    allowed = {"paths.py", "atomic_files.py", "cache.py", "labelled.py", "art.py", "emoji.py"}
    allowed |= {"tar_index.py", "reading.py", "recipes.py", "results.py", "packages.py"}
    allowed |= {"integrity.py", "kernel_schedules.py", "mirror.py", "workdir.py"}
    for file in (ROOT / "vit_jax").rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        made = [ast.unparse(n) for n in calls if ast.unparse(n.func) == "pathlib.Path"]
        made = [text for text in made if text != "pathlib.Path(__file__)"]
        assert not made or file.name in allowed, f"{file}: {made}; expected paths.as_path"
