"""What a run was started with: command, versions, devices, commit and uncommitted changes.

Each start adds a line to `provenance/starts.jsonl` of the workdir. Uncommitted changes are kept as
`provenance/HASH.diff`, once for all starts that had them.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

from vit_jax.atomic_files import append_text, write_text
from vit_jax.paths import StrPath, as_path

FOLDER, FILE_NAME = "provenance", "starts.jsonl"

_PACKAGES = ("vit_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "libtpu")
_SECONDS = 10  # for a command of git


def record(workdir: StrPath) -> tuple[dict[str, Any], str]:
    """Adds this start to the workdir of a run. A folder that is no repository has no commit.

    Args:
        workdir: folder of the run, local or in a bucket.

    Returns:
        The start, see `describe`, and the uncommitted changes, "" where there are none.
    """
    folder = as_path(workdir) / FOLDER
    start, changes = describe(), _git("diff", "HEAD", "--binary")
    if changes:
        name = f"{hashlib.sha256(changes.encode()).hexdigest()[:12]}.diff"
        start["changes"] = name
        if not (folder / name).exists():
            write_text(folder / name, changes)
    append_text(folder / FILE_NAME, json.dumps(start) + "\n")
    return start, changes


def describe() -> dict[str, Any]:
    """Describes this process: time, command, host, versions, devices, and commit of its folder."""
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([os.path.basename(sys.executable), *sys.orig_argv[1:]]),
        "folder": os.getcwd(),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "commit": _git("rev-parse", "HEAD").strip() or None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """Output of a command of git in the current folder; "" where there is no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
