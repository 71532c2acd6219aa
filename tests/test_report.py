"""The comparison of runs: tables, plots, and folders that are not runs."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from vit_jax.errors import UserError
from vit_jax.report import report
from vit_jax.reporting.runs import read_run
from vit_jax.reporting.tables import config_rows, format_table, metric_rows


def write_run(folder, config, rows):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path):
    first = {"seed": 0, "optim": {"lr": 0.1, "freeze": []}, "evals": {}}
    second = {"seed": 0, "optim": {"lr": 0.2, "freeze": []}, "data": {"train": "x"}, "evals": {}}
    rows = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0}, {"step": 20, "probe/top1": 0.25}]
    # Resumed at step 10, so that step 20 occurs twice.
    again = [{"step": 20, "loss": 9.0}, {"step": 10, "loss": 2.5}, {"step": 20, "loss": 0.00012}]
    folders = [write_run(tmp_path / "a", first, rows), write_run(tmp_path / "b", second, again)]
    with (folders[1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')  # cut off by a kill
    return folders


def test_tables(runs):
    read = [read_run(path) for path in runs]
    assert config_rows(read) == [["data.train", "-", "x"], ["optim.lr", "0.1", "0.2"]]
    assert metric_rows(read) == [["loss", "2.0000", "0.00012"], ["probe/top1", "0.2500", "-"]]
    assert format_table("last", read, metric_rows(read)).splitlines() == [
        "last             a        b",
        "loss        2.0000  0.00012",
        "probe/top1  0.2500        -",
    ]


def test_the_command_prints_and_plots(runs, capsys):
    pytest.importorskip("matplotlib")
    report([str(path) for path in runs], str(runs[0] / "plots"))
    path = runs[0] / "plots" / "curves.png"
    printed = capsys.readouterr().out
    assert "optim.lr" in printed
    assert str(path) in printed
    with Image.open(path) as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


def test_tables_do_not_import_matplotlib(runs):
    """Nor do they need it; plots name the extra."""
    script = f"""
import sys
sys.modules["matplotlib"] = None
from vit_jax.report import report
report([{str(runs[0])!r}], None)
report([{str(runs[0])!r}], "plots")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], text=True, capture_output=True, check=False
    )
    assert "loss" in done.stdout
    assert "pip install 'vit_jax[report]'" in done.stderr


def test_folders_that_are_not_runs(tmp_path, runs):
    with pytest.raises(UserError, match="not the workdir of a run"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="no run: expected one or more"):
        report([], None)
    metrics = runs[0] / "metrics.jsonl"
    metrics.write_text('{"loss": 1}\n')
    with pytest.raises(UserError, match="line 1: expected an object with a step"):
        read_run(runs[0])
    metrics.unlink()
    with pytest.raises(UserError, match=r"has no metrics.jsonl"):
        read_run(runs[0])


def test_nothing_to_plot(tmp_path, runs):
    pytest.importorskip("matplotlib")
    from vit_jax.reporting.plots import plot_curves

    (runs[0] / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n')
    with pytest.raises(UserError, match="nothing to plot"):
        plot_curves([read_run(runs[0])], tmp_path / "x.png")
