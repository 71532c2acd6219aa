"""The user's cache folder."""

import os
import pathlib


def cache_dir() -> pathlib.Path:
    """Path of $VIT_JAX_CACHE, else $XDG_CACHE_HOME/vit_jax, else ~/.cache/vit_jax."""
    if own := os.environ.get("VIT_JAX_CACHE"):
        return pathlib.Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(xdg) if xdg else pathlib.Path.home() / ".cache") / "vit_jax"
