"""The folder of a run: its config, its lock, and readable errors of the file system."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping
from typing import IO, Any

from etils import epath
from ml_collections import ConfigDict

from vit_jax.atomic_files import write_text
from vit_jax.config import with_defaults
from vit_jax.data.cache import cache_dir
from vit_jax.errors import UserError
from vit_jax.paths import StrPath, as_path, is_url

CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"
LOCK_FILE = ".lock"

# Keys of logging, evaluation and placement: changing them does not change the computation.
FREE_KEYS = (
    "log_steps",
    "checkpoint_",
    "keep_",
    "watchdog_seconds",
    "eval_",
    "evals.",
    "mesh.",
    "data.workers",
    "data.max_image_pixels",
    "hooks.",
    "trackers.",
)
# Keys that give a saved data position, and the learned token embeddings, their meaning.
FIXED_KEYS = ("seed", "batch_size", "data.train", "data.group_by", "model.tokenizer")

_FILE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}


def save_config(workdir: StrPath, config: ConfigDict) -> None:
    """Writes `config.json` atomically."""
    write_text(as_path(workdir) / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")


def save_result(workdir: StrPath, step: int, metrics: Mapping[str, float]) -> None:
    """Writes `result.json` atomically: the run is complete.

    Args:
        workdir: folder of the run.
        step: last training step.
        metrics: metrics of the last evaluation.
    """
    result = {"step": step, "metrics": dict(metrics)}
    write_text(as_path(workdir) / RESULT_FILE, json.dumps(result, indent=2) + "\n")


def is_complete(workdir: StrPath) -> bool:
    """Whether a run has reached its last step and its last evaluation."""
    return (as_path(workdir) / RESULT_FILE).exists()


def workdir_path(workdir: StrPath) -> epath.Path:
    """Returns the folder of a run: local, or in a bucket of Google Cloud.

    Raises:
        UserError: a URL of another kind, or a bucket that cannot be reached.
        MissingPackageError: the package for buckets is not installed.
    """
    text = os.fspath(workdir)
    if is_url(text) and not text.startswith(("gs:", "gcs:", "file:")):
        raise UserError(
            f"{text}: expected a local path or gs://, because Orbax does not write checkpoints to "
            "other buckets. Mount the bucket"
        )
    return as_path(text)


def load_config(workdir: StrPath) -> ConfigDict:
    """Reads the config of a run; keys that came with later versions have their defaults.

    Raises:
        UserError: the folder is not a workdir, or its config cannot be read.
    """
    return with_defaults(ConfigDict(saved_config(workdir)))


def saved_config(workdir: StrPath) -> dict[str, Any]:
    """Reads the config of a run as it was saved.

    Raises:
        UserError: the folder is not a workdir, or its config cannot be read.
    """
    path = as_path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{workdir} is not the workdir of a run: no {CONFIG_FILE} in it")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def changes(workdir: StrPath, config: ConfigDict) -> dict[str, str]:
    """Keys whose values differ from the saved config, each with "before -> now".

    Args:
        workdir: folder of the run, which need not exist yet.
        config: resolved config of this start.
    """
    if not (as_path(workdir) / CONFIG_FILE).exists():
        return {}
    before, now = _flat(load_config(workdir).to_dict()), _flat(_as_json(config))
    return {
        key: f"{before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }


def refuse(workdir: StrPath, changed: dict[str, str], why: str) -> UserError:
    """The error for a config that does not fit the saved state.

    Args:
        workdir: folder of the run.
        changed: key -> "before -> now".
        why: reason, as a clause.
    """
    listed = "; ".join(f"{key}: {change}" for key, change in changed.items())
    return UserError(
        f"{workdir} belongs to a run with another config ({listed}), and {why}; "
        "choose another --workdir, or the same config to resume"
    )


@contextlib.contextmanager
def locked(workdir: StrPath) -> Iterator[None]:
    """Creates the folder, and locks it against other runs within the block.

    The kernel releases the lock when the process ends, in any way. On network file systems the lock
    holds between hosts where the file system supports `flock` (NFS 4 does, gcsfuse does not). For a
    folder in a bucket the lock is in the user's cache, and holds on this machine.

    Raises:
        UserError: another run holds the lock; the message names its host and process.
    """
    path = _lock_file(workdir_path(workdir))
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _acquire(path, workdir)
    try:
        yield
    finally:
        # Removed while it is held, so that the lock of another run is never removed.
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _lock_file(workdir: epath.Path) -> pathlib.Path:
    if is_url(workdir):
        name = hashlib.sha256(str(workdir).encode()).hexdigest()[:32]
        return cache_dir() / "locks" / f"{name}{LOCK_FILE}"
    return pathlib.Path(workdir / LOCK_FILE)


def _acquire(path: pathlib.Path, workdir: StrPath) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{workdir} is in use by {owner}: two runs would overwrite each other; "
                "stop that one, or choose another --workdir"
            ) from None
        # The previous owner may have removed the file between `open` and `flock`.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}\n")
                file.flush()
                return file
        file.close()


@contextlib.contextmanager
def readable_file_errors(workdir: StrPath) -> Iterator[None]:
    """Turns a full disk or a lost permission within the block into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise
        raise UserError(
            f"{error.filename or workdir}: {error.strerror}; the run has stopped. Once this is "
            "fixed, the same command continues from its newest checkpoint"
        ) from error


def _as_json(config: ConfigDict) -> dict[str, Any]:
    return json.loads(json.dumps(config.to_dict()))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
