"""Runs with trackers that have servers: a real one, one that is down, one that does not answer."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT, metrics_of, tiny_clip
from vit_jax import experiment
from vit_jax.tracking import Trackers

pytestmark = pytest.mark.release


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory):
    """Address of a local MLflow server."""
    pytest.importorskip("mlflow.server", reason="needs the package mlflow", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"http://127.0.0.1:{(port := free_port())}"
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command], stdout=log, stderr=log, env=environment
        )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        server.terminate()
        server.wait(30)


def train(workdir, monkeypatch, **trackers):
    """Trains ten steps in the repository; returns the seconds."""
    monkeypatch.chdir(ROOT)
    config = tiny_clip()
    config.evals = {}
    config.trackers.update(trackers)
    config.hooks.samples = {"name": "samples", "count": 3}
    started = time.monotonic()
    experiment.train(config, workdir)
    return time.monotonic() - started


def test_mlflow_holds_what_was_logged(mlflow_uri, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    workdir = tmp_path / "run"
    block = {"uri": mlflow_uri, "experiment": "digits", "close_seconds": 300.0}
    train(workdir, monkeypatch, mlflow=block)
    client = MlflowClient(mlflow_uri)
    number = client.get_experiment_by_name("digits").experiment_id
    (run,) = client.search_runs([number])
    history = client.get_metric_history(run.info.run_id, "loss")
    found = {metric.step: metric.value for metric in history}
    assert found == pytest.approx(metrics_of(workdir))
    assert len(found) == 10
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.003"
    start = json.loads((workdir / "provenance" / "starts.jsonl").read_text())
    assert run.data.tags["mlflow.source.git.commit"] == start["commit"]

    def artifact(path):
        return client.download_artifacts(run.info.run_id, path)

    with open(artifact("config.json")) as file:
        assert json.load(file) == json.loads((workdir / "config.json").read_text())
    with open(artifact("provenance/start.json")) as file:
        assert json.load(file) == start
    with Image.open(artifact("images/samples/images/00000001.png")) as image:
        assert image.size == (24, 8)
        assert np.asarray(image).std() > 0
    # A second start goes on in the same run.
    again = Trackers({"mlflow": block}, workdir, first_step=10)
    again.write_config({"seed": 5})  # parameters are those of the first start
    again.write_scalars(11, {"recall@1": 0.5})
    again.write_texts(11, {"answers": "a cat"})
    again.close()
    (run,) = client.search_runs([number])
    assert run.data.metrics["recall_1"] == 0.5
    # An evaluation adds to it, and leaves its status, as it may still train.
    client.update_run(run.info.run_id, status="RUNNING")
    beside = Trackers({"mlflow": block}, workdir, first_step=None)
    beside.write_scalars(10, {"probe/a/top1": 0.75})
    beside.close()
    (run,) = client.search_runs([number])
    assert (run.data.metrics["probe/a/top1"], run.info.status) == (0.75, "RUNNING")
    assert run.data.params["seed"] == "0"
    with open(artifact("texts/answers/00000011.txt")) as file:
        assert file.read() == "a cat"


def test_dead_servers_neither_stop_nor_slow_a_run(tmp_path, monkeypatch, caplog):
    """MLflow's address refuses, that of W&B accepts and never answers."""
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow.tracking")
    train(tmp_path / "compiled", monkeypatch)
    alone = train(tmp_path / "alone", monkeypatch)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        dead = {
            "mlflow": {"uri": f"http://127.0.0.1:{free_port()}", "close_seconds": 3},
            "wandb": {"close_seconds": 2},
        }
        with caplog.at_level(logging.WARNING, "vit_jax"):
            tracked = train(tmp_path / "run", monkeypatch, **dead)
    print(f"alone {alone:.1f} s, with two dead servers {tracked:.1f} s")
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "alone")
    # Two and three seconds, the import of both packages and the start of wandb-core. The client of
    # MLflow repeats its first request for more than three minutes.
    assert tracked - alone < 60
    assert "Tracker mlflow: 13 of 13 records are missing." in caplog.text
    assert "Tracker wandb: the upload is not complete" in caplog.text
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder}" in caplog.text
