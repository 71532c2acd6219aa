"""What a run's folder says of itself: its config."""

import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from vit_jax.errors import UserError

CONFIG_FILE = "config.json"

# Keys that may change between a start and a resume: they do not touch what is computed.
FREE_KEYS = (
    "log_steps",
    "checkpoint_",
    "keep_checkpoints",
    "eval_",
    "evals.",
    "mesh.",
    "data.workers",
)


def save_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes `config.json`, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    partial = workdir / f"{CONFIG_FILE}.partial"
    partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, workdir / CONFIG_FILE)


def load_config(workdir: str | pathlib.Path) -> ConfigDict:
    """Reads the config of a run."""
    path = pathlib.Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{workdir} is not the workdir of a run: no {CONFIG_FILE} in it")
    try:
        return ConfigDict(json.loads(path.read_text(encoding="utf-8"))).lock()
    except json.JSONDecodeError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def check_same_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Refuses to continue a run with a config that would compute something else."""
    if not (workdir / CONFIG_FILE).exists():
        return
    before, now = _flat(load_config(workdir).to_dict()), _flat(_as_json(config))
    changed = [
        f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE_KEYS)
    ]
    if changed:
        raise UserError(
            f"{workdir} belongs to a run with another config ({'; '.join(changed)}); "
            "choose another --workdir, or the same config to resume"
        )


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
