"""What is kept, what is found damaged, what is told when a disk is full."""

import json
import logging
import os
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.checkpoint import integrity
from vit_jax.checkpoint.manager import (
    Checkpoints,
    Retention,
    set_damaged_aside,
    step_numbers,
    with_sharding,
)
from vit_jax.errors import UserError
from vit_jax.training.state import TrainState

PARTS = ("params", "opt_state", "ema")


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]), ("fsdp",))


def make_state(step, count=8):
    """A state whose matrices lie split over `count` devices."""
    split = NamedSharding(mesh_of(count), PartitionSpec("fsdp"))
    whole = NamedSharding(mesh_of(count), PartitionSpec())
    params = {"matrix": jax.device_put(jnp.arange(64.0).reshape(16, 4) + step, split)}
    return TrainState(
        step=jax.device_put(jnp.int32(step), whole),
        params=params,
        opt_state={"mu": jax.tree.map(lambda x: 2 * x, params)},
        ema=jax.tree.map(lambda x: 3 * x, params),
    )


def save(workdir, steps, metrics=None, urgent=False, **retention):
    """Saves states one after another, as a run does."""
    checkpoints = Checkpoints(workdir, retention=Retention(**{"last": 2, **retention}))
    for step in steps:
        found = (metrics or {}).get(step, {})
        position = {"examples": 32 * step}
        rest = {"config": {"seed": 0}, "metrics": found, "urgent": urgent}
        checkpoints.save(step, make_state(step), data=position, **rest)
    checkpoints.close()


@pytest.mark.parametrize("urgent", [False, True])
def test_a_save_goes_after_the_steps_unless_it_is_urgent(tmp_path, monkeypatch, urgent):
    """The threads that write have the lowest priority, and those that train keep theirs."""

    def priority():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found = []
    monkeypatch.setattr(integrity, "seal", lambda _: found.append(priority()))
    before = priority()
    save(tmp_path, [1], urgent=urgent)
    assert found == [before if urgent else 19]
    assert priority() == before


def kept(workdir):
    return sorted(step_numbers(workdir / "checkpoints"))


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        ({}, [6, 7]),
        ({"last": 1}, [7]),
        ({"every_steps": 3}, [3, 6, 7]),
        ({"last": 1, "best": "top1"}, [2, 7]),
    ],
)
def test_what_is_kept(tmp_path, retention, expected):
    metrics = {2: {"top1": 0.9, "top5": 0.1}, 4: {"top1": 0.8, "top5": 0.2}}
    save(tmp_path, range(1, 8), metrics, **retention)
    assert kept(tmp_path) == expected


def test_the_best_is_known_after_a_restart(tmp_path):
    save(tmp_path, [1, 2], {1: {"top1": 0.5}}, last=1, best="top1")
    checkpoints = Checkpoints(tmp_path, retention=Retention(1, best="top1"))
    assert checkpoints.is_best({"top1": 0.6})
    assert not checkpoints.is_best({"top1": 0.4})
    assert not checkpoints.is_best({})
    with pytest.raises(UserError, match=r"unknown config\.keep_best, 'top1'; did you mean 'topp1'"):
        checkpoints.is_best({"topp1": 1.0})
    checkpoints.close()
    save(tmp_path, [3], {3: {"top1": 0.6}}, last=1, best="top1")
    assert kept(tmp_path) == [3]


@pytest.mark.parametrize(
    ("values", "message"),
    [({"last": 0}, "keep_checkpoints=0"), ({"last": 1, "every_steps": -1}, "keep_every_steps=-1")],
)
def test_what_cannot_be_kept(values, message):
    with pytest.raises(UserError, match=message):
        Retention(**values)


def files(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_config_and_checksums_lie_in_every_checkpoint(tmp_path):
    save(tmp_path, [1])
    folder = tmp_path / "checkpoints" / "1"
    assert json.loads((folder / "config" / "metadata").read_text()) == {"seed": 0}
    recorded = set(json.loads((folder / integrity.FILE_NAME).read_text()))
    found = {path.relative_to(folder).as_posix() for path in files(tmp_path, 1)}
    # The last two are written when the folder has its final name.
    assert found - recorded == {integrity.FILE_NAME, "commit_success.txt", "_CHECKPOINT_METADATA"}
    assert recorded <= found


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": (flip, "has changed since it was written"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes"),
    "missing": (pathlib.Path.unlink, "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_found(tmp_path, damage):
    """Every file of the parts is damaged, found and mended."""
    save(tmp_path, [1])
    folder = tmp_path / "checkpoints" / "1"
    spoil, message = DAMAGES[damage]
    for path in files(tmp_path, 1):
        before = path.read_bytes()
        if path.name == integrity.FILE_NAME or path.parent == folder or not before:
            continue
        spoil(path)
        with pytest.raises(integrity.Damaged, match=message):
            integrity.check(folder)
        path.write_bytes(before)
    integrity.check(folder)


def test_damage_to_the_two_files_beside_the_parts_is_found(tmp_path):
    save(tmp_path, [1])
    folder = tmp_path / "checkpoints" / "1"
    for name in (integrity.FILE_NAME, "_CHECKPOINT_METADATA"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before[: len(before) // 2])
        with pytest.raises(integrity.Damaged, match=f"{name} cannot be read"):
            integrity.check(folder)
        (folder / name).write_bytes(before)


def largest(workdir, step):
    return max(files(workdir, step), key=lambda path: path.stat().st_size)


def test_a_damaged_checkpoint_without_checksums_is_found_too(tmp_path):
    """As older versions wrote them: the arrays must at least be readable."""
    save(tmp_path, [1])
    folder = tmp_path / "checkpoints" / "1"
    (folder / integrity.FILE_NAME).unlink()
    integrity.check(folder)
    (folder / "params" / "manifest.ocdbt").write_bytes(b"nothing")
    with pytest.raises(integrity.Damaged, match="params"):
        integrity.check(folder)


def test_falls_back_to_the_newest_whole_one(tmp_path, caplog):
    save(tmp_path, [1, 2, 3], last=3)
    for step in (2, 3):
        flip(largest(tmp_path, step))
    with caplog.at_level(logging.WARNING, "vit_jax"):
        set_damaged_aside(tmp_path)
    assert "The checkpoint of step 3 is damaged" in caplog.text
    assert Checkpoints(tmp_path).latest_step() == 1
    assert (tmp_path / "checkpoints" / "3.damaged").is_dir()
    # The steps can be saved again.
    save(tmp_path, [2, 3], last=3)
    assert kept(tmp_path) == [1, 2, 3]


def test_all_damaged_is_an_error_every_time(tmp_path):
    save(tmp_path, [1])
    flip(largest(tmp_path, 1))
    for _ in range(2):
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
            set_damaged_aside(tmp_path)


def abstract_of(state):
    shapes = jax.eval_shape(lambda: state)
    return with_sharding(shapes, jax.tree.map(lambda x: x.sharding, state))


def test_evaluation_takes_the_newest_whole_parameters(tmp_path, caplog):
    """Neither a damaged optimizer nor a damaged newer checkpoint keeps it from them."""
    save(tmp_path, [1, 2])
    abstract = abstract_of(make_state(0)).params
    for path in (tmp_path / "checkpoints" / "2" / "opt_state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    checkpoints = Checkpoints(tmp_path)
    found, _ = checkpoints.restore_params(abstract, ema=False)
    np.testing.assert_array_equal(found["matrix"], make_state(2).params["matrix"])
    for path in (tmp_path / "checkpoints" / "2" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with caplog.at_level(logging.WARNING, "vit_jax"):
        found, step = checkpoints.restore_params(abstract, ema=False)
    np.testing.assert_array_equal(found["matrix"], make_state(1).params["matrix"])
    assert step == 1
    assert "The checkpoint of step 2 is damaged" in caplog.text
    found, _ = checkpoints.restore_params(abstract, ema=True)
    np.testing.assert_array_equal(found["matrix"], make_state(2).ema["matrix"])
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        checkpoints.restore_params(abstract, ema=False, step=2)


@pytest.mark.parametrize("count", [1, 4])
def test_restored_on_other_devices(tmp_path, count):
    save(tmp_path, [5])
    state = make_state(5, count)
    found, position = Checkpoints(tmp_path).restore(5, abstract_of(state))
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert found.params["matrix"].sharding.is_equivalent_to(state.params["matrix"].sharding, 2)
    assert position == {"examples": 160}


def test_what_cannot_be_read_back_does_not_become_a_checkpoint(tmp_path, monkeypatch):
    """Half a file on its way to the disk: the one before stays, although only one is to."""
    save(tmp_path, [1], last=1)
    seal = integrity.seal

    def spoil(checkpoint):
        (checkpoint / "params" / "manifest.ocdbt").write_bytes(b"half")
        seal(checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(integrity, "seal", spoil)
        message = r"step 2 was not saved.*verification failed.*step 1 is intact"
        with pytest.raises(UserError, match=message):
            save(tmp_path, [2], last=1)
    assert kept(tmp_path) == [1]
    integrity.check(tmp_path / "checkpoints" / "1")
    save(tmp_path, [2], last=1)
    assert kept(tmp_path) == [2]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
