"""The user's cache folder."""

import functools
import logging
import os
import pathlib
import tempfile

from vit_jax.errors import UserError
from vit_jax.paths import as_local_path

logger = logging.getLogger(__name__)


def cache_dir() -> pathlib.Path:
    """Folder for new files of the cache.

    Returns:
        $VIT_JAX_CACHE, else $XDG_CACHE_HOME/vit_jax, else ~/.cache/vit_jax; where that cannot be
        written, a folder of the user's in the folder of temporary files.

    Raises:
        UserError: no folder can be written, or VIT_JAX_CACHE is a URL.
    """
    configured = _configured()
    return configured if configured and _is_writable(configured) else _fallback(configured)


def find_cached(name: str) -> pathlib.Path:
    """Returns the path of a file of the cache: an existing one, or one in `cache_dir()`.

    Args:
        name: path within the cache. The configured folder may be read-only.

    Raises:
        UserError: see `cache_dir`.
    """
    configured = _configured()
    if configured and os.path.exists(configured / name):
        return configured / name
    return cache_dir() / name


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes a file in full or not at all, even when several processes write the same one.

    Args:
        path: file; its folder is created, an existing file is replaced.
        data: contents.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.chmod(file.name, 0o644)  # temporary files are private to their owner
    os.replace(file.name, path)


def _configured() -> pathlib.Path | None:
    """The folder of the environment; None for a user without a home folder."""
    if own := os.environ.get("VIT_JAX_CACHE"):
        return as_local_path(own, "VIT_JAX_CACHE holds files that are mapped into memory")
    parent = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(parent) / "vit_jax" if not parent.startswith("~") else None


@functools.cache
def _is_writable(folder: pathlib.Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@functools.cache
def _fallback(configured: pathlib.Path | None) -> pathlib.Path:
    """A folder that only this user can read and write."""
    reason = f"{configured} cannot be written" if configured else "there is no home folder"
    hint = "set VIT_JAX_CACHE to a folder that can be written"
    try:
        folder = pathlib.Path(tempfile.gettempdir()) / f"vit_jax-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        usable = folder.lstat().st_uid == os.getuid() and _is_writable(folder)
    except OSError:
        usable = False
    if not usable:
        raise UserError(f"no folder for cached files: {reason}, nor a temporary one; {hint}")
    logger.warning("Cached files are kept in %s, because %s; %s.", folder, reason, hint)
    return folder
