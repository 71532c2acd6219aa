"""Trackers: what each records, and that none of them stops or slows training."""

import json
import logging
import socket
import sys
import threading
import time

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from vit_jax.errors import MissingPackageError, UserError
from vit_jax.tracking import Trackers, joining
from vit_jax.tracking.background import Background
from vit_jax.tracking.base import Tracker

CONFIG = {"optim": {"lr": 0.5}, "seed": 3, "data": {"templates": ["{}"]}}
START = {"command": "python -m vit_jax.train --config x", "commit": "a" * 40, "host": "h"}
DIFF = "--- a/x\n+++ b/x\n+a = 2\n"
IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def write_everything(trackers):
    """Writes one record of each kind, and three steps of metrics."""
    trackers.write_config(CONFIG)
    trackers.write_start(START, DIFF)
    for step in (1, 2, 3):
        trackers.write_scalars(step, {"loss": 1 / step, "recall@1": np.float32(step)})
    trackers.write_images(3, {"samples/images": IMAGE})
    trackers.write_texts(3, {"samples/texts": "1. a cat\n2. a dog\n"})
    trackers.close()


class Recorder(Tracker):
    """Keeps what it gets; the first attempts to open it fail, and every record that says so."""

    remote = True
    failures = 0
    records: list = []  # noqa: RUF012 of the newest test

    def __init__(self, config, workdir, first_step):
        if type(self).failures:
            type(self).failures -= 1
            raise ConnectionError("no answer")

    def write_scalars(self, step, scalars):
        if "bad" in scalars:
            raise ConnectionError("refused")
        self.records.append((step, scalars))

    def close(self):
        self.records.append("closed")


def recorder(**options):
    """A recorder on its thread; returns it and the list of its records."""
    Recorder.records = []
    options = {"retry_seconds": 0.01, "close_seconds": 30.0} | options
    return Background("mine", lambda: Recorder(None, None, 0), **options), Recorder.records


def event_protos(path):
    """Events of an event file, which is TFRecord."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        yield event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length


def events(folder):
    """Summaries of the event files of a folder: (step, value)."""
    found = [event for path in sorted(folder.iterdir()) for event in event_protos(path)]
    return [(event.step, value) for event in found for value in event.summary.value]


def wandb_records(path):
    """Records of a `.wandb` file: a log in the format of LevelDB, with 7 bytes before it.

    The log has blocks of 32 KiB, the first one with those 7 bytes; a record is cut where a block
    ends, and less than 7 bytes of a block stay empty.
    """
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            yield record
            record = b""


def test_tensorboard_with_images_and_texts(tmp_path):
    write_everything(Trackers({"tensorboard": {}}, tmp_path))
    found = {(step, value.tag): value for step, value in events(tmp_path / "tensorboard")}
    assert found[2, "loss"].simple_value == 0.5
    image = found[3, "samples/images"].image
    assert (image.height, image.width, image.colorspace) == (4, 4, 3)
    assert found[3, "samples/texts/text_summary"].tensor.string_val[0] == b"1. a cat\n2. a dog\n"
    assert b'        "lr": 0.5' in found[0, "config/text_summary"].tensor.string_val[0]
    assert b"aaaa" in found[0, "provenance/start/text_summary"].tensor.string_val[0]
    changes = found[0, "provenance/uncommitted_changes/text_summary"]
    assert b"    +a = 2" in changes.tensor.string_val[0]


def test_an_evaluation_adds_to_the_run(tmp_path, caplog, monkeypatch):
    """Nothing of the run is purged, and trackers that it cannot join get nothing."""
    blocks = {"tensorboard": {}, "jsonl": {}, "wandb": {}}
    write_everything(Trackers({"tensorboard": {}, "jsonl": {}}, tmp_path))
    lines = (tmp_path / "metrics.jsonl").read_text()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING, "vit_jax"):
        chosen = joining(blocks)
    assert chosen == {"tensorboard": {}}
    assert "Tracker wandb gets no records: the tracker wandb needs its package" in caplog.text
    beside = Trackers(chosen, tmp_path, first_step=None)
    beside.write_scalars(2, {"probe/a/top1": 0.75})
    beside.close()
    found = {(step, value.tag): value for step, value in events(tmp_path / "tensorboard")}
    assert found[2, "probe/a/top1"].simple_value == 0.75
    assert found[3, "loss"].simple_value == np.float32(1 / 3)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    purges = [
        any(event.HasField("session_log") for event in event_protos(path))
        for path in (tmp_path / "tensorboard").iterdir()
    ]
    assert sorted(purges) == [False, True]


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run = tmp_path / "run"
    run.mkdir()
    block = {"wandb": {"mode": "offline", "project": "ablations", "group": "size", "tags": ["a"]}}
    write_everything(Trackers(block, run))
    Trackers(block, run, first_step=None).close()  # an evaluation
    first, second = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert first.name == second.name  # the same id
    rows, config = [], {}
    for data in wandb_records(first):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("run"):
            described = record.run
        for item in record.config.update:
            config[item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            items = record.history.item
            rows.append({"/".join(x.nested_key) or x.key: json.loads(x.value_json) for x in items})
    assert (described.project, described.run_group) == ("ablations", "size")
    assert described.display_name == "run"
    assert config["optim"] == CONFIG["optim"]
    assert config["provenance"]["commit"] == START["commit"]
    assert [row["train_step"] for row in rows] == [1, 2, 3, 3, 3]
    assert [row["recall@1"] for row in rows[:3]] == [1.0, 2.0, 3.0]
    (png,) = first.parent.rglob("*.png")
    assert rows[3]["samples/images/path"].endswith(png.name)
    (table,) = first.parent.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [["1. a cat"], ["2. a dog"]]
    assert (first.parent / "files" / "uncommitted.diff").read_text() == DIFF


def test_wandb_without_a_key_is_refused_before_the_run(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"no API key.*WANDB_API_KEY.*mode='offline'"):
        Trackers.check({"wandb": {}})


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_missing_packages_are_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'vit_jax\[{name}\]'"):
        Trackers.check({name: {}})


def test_a_server_that_comes_late_gets_everything(caplog):
    Recorder.failures = 2
    tracker, records = recorder()
    for step in range(5):
        tracker.write_scalars(step, {"loss": 1.0})
    deadline = time.monotonic() + 30
    while len(records) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    with caplog.at_level(logging.WARNING, "vit_jax"):
        tracker.close()
    assert records == [*((step, {"loss": 1.0}) for step in range(5)), "closed"]
    assert "missing" not in caplog.text


def test_refused_records_are_counted(caplog):
    tracker, records = recorder()
    with caplog.at_level(logging.WARNING, "vit_jax"):
        for values in ({"loss": 1.0}, {"bad": 1.0}, {"loss": 2.0}):
            tracker.write_scalars(1, values)
        tracker.close()
    assert records == [(1, {"loss": 1.0}), (1, {"loss": 2.0}), "closed"]
    assert "Tracker mine: ConnectionError('refused'). The run goes on." in caplog.text
    assert "Tracker mine: 1 of 3 records are missing." in caplog.text


def test_a_server_that_does_not_answer_costs_no_time(caplog):
    """The address accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answered = threading.Event()

        def open_tracker():
            with socket.create_connection(silent.getsockname()) as connection:
                connection.recv(1)
                answered.set()
            return Recorder(None, None, 0)

        tracker = Background("mine", open_tracker, capacity=100, close_seconds=0.2)
        started = time.monotonic()
        with caplog.at_level(logging.WARNING, "vit_jax"):
            for step in range(5000):
                tracker.write_scalars(step, {"loss": 1.0})
            tracker.close()
        assert time.monotonic() - started < 2
        assert not answered.is_set()
    assert "it does not keep up, and records are dropped" in caplog.text
    assert "Tracker mine: 5000 of 5000 records are missing." in caplog.text
