"""Files of a data set of Hugging Face on a local disk, in the layouts that its libraries write.

The layouts:

    DIR/dataset_dict.json, DIR/SPLIT/state.json     `DatasetDict.save_to_disk`
    DIR/state.json                                  `Dataset.save_to_disk`
    DIR/[data|CONFIG]/SPLIT-00000-of-00002.parquet  a repository of the hub, a clone or a download
    DIR/[CONFIG/]SPLIT/0000.parquet                 its branch `refs/convert/parquet`
    datasets--ORG--NAME/snapshots/COMMIT/           a repository in the cache of the hub
    ORG___NAME/CONFIG/VERSION/HASH/*-SPLIT.arrow    the cache of `datasets`
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from vit_jax.errors import UserError, check_name, printable
from vit_jax.paths import as_local_path

T = TypeVar("T")
Splits = dict[str, list[pathlib.Path]]

_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<count>\d{5})(-[0-9a-f]+)?")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DEFAULT = "default"  # configuration of a repository that has one only


def find(place: str, config: str | None = None, split: str | None = None) -> list[str]:
    """Lists the files of a split.

    Args:
        place: path of a folder, or NAME or ORG/NAME of a data set in one of the caches.
        config: configuration; None where there is one only.
        split: split; None where there is one only.

    Returns:
        Paths of Arrow or of Parquet files, in the order of the rows.

    Raises:
        UserError: no such data set, configuration or split, one that has to be chosen, or shards
            that are absent.
    """
    paths = _choose(splits(place, config), split, "split", place)
    shards = [match for path in paths if (match := _SHARD.fullmatch(path.stem))]
    if shards and len(paths) != int(shards[0]["count"]):
        raise UserError(f"{place} has {len(paths)} of {int(shards[0]['count'])} shards of a split")
    return [os.fspath(path) for path in paths]


def splits(place: str, config: str | None = None) -> Splits:
    """Lists the files of all splits, see `find`."""
    folder = _folder(place)
    if (folder / "dataset_dict.json").is_file():
        names = _read_json(folder / "dataset_dict.json").get("splits", [])
        return {name: _saved(folder / name) for name in names}
    if (folder / "state.json").is_file():
        return {_read_json(folder / "state.json").get("_split") or "all": _saved(folder)}
    if (folder / "snapshots").is_dir():
        folder = _snapshot(folder)
    if found := sorted(folder.glob("*/*/*/dataset_info.json")):
        folder = _prepared(found, config, place)
    if (folder / "dataset_info.json").is_file() and (arrow := sorted(folder.glob("*.arrow"))):
        return _prepared_splits(arrow, _read_json(folder / "dataset_info.json"))
    configs: dict[str, Splits] = {}
    for path in sorted(folder.rglob("*.parquet")):
        name, split = _parquet_split(path.relative_to(folder))
        configs.setdefault(name, {}).setdefault(split, []).append(path)
    if not configs:
        raise UserError(
            f"{folder} has no data set of Hugging Face: expected dataset_dict.json, state.json, "
            "dataset_info.json or .parquet files"
        )
    return _choose(configs, config, "config", place)


def _choose(found: Mapping[str, T], given: str | None, option: str, place: str) -> T:
    if given is not None:
        check_name(given, found, f"{option} of {place}")
        return found[given]
    if len(found) > 1:
        names = printable(", ".join(sorted(found)))
        raise UserError(f"{place} has the {option}s {names}: choose one, as ?{option}=NAME")
    return next(iter(found.values()))


def _folder(place: str) -> pathlib.Path:
    """The folder of a path, or of a name in one of the caches."""
    folder = as_local_path(place, "Arrow files are mapped into memory")
    if folder.is_dir():
        return folder
    if not _REPOSITORY.fullmatch(place):
        raise UserError(f"no folder {place}: expected a data set of Hugging Face")
    home = as_local_path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "it is a cache")
    hub = as_local_path(os.environ.get("HF_HUB_CACHE") or home / "hub", "it is a cache")
    prepared = as_local_path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets", "it is one")
    cached = (hub / f"datasets--{place.replace('/', '--')}", prepared / place.replace("/", "___"))
    for folder in cached:
        if folder.is_dir():
            return folder
    raise UserError(
        f"no data set {place!r}: it is no folder, and neither {cached[0]} nor {cached[1]} exists; "
        f"run `hf download --repo-type dataset {place}` where there is network"
    )


def _saved(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files of a split that `save_to_disk` has written."""
    state = _read_json(folder / "state.json")
    try:
        if state.get("_indices_data_files"):
            raise UserError(f"{folder} has indices of an old format: load and save it again")
        return [folder / file["filename"] for file in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}/state.json does not name its files") from error


def _snapshot(repository: pathlib.Path) -> pathlib.Path:
    """The newest snapshot of a repository in the cache of the hub."""
    main, found = repository / "refs" / "main", sorted((repository / "snapshots").iterdir())
    if main.is_file():
        return repository / "snapshots" / main.read_text().strip()
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{repository} has the snapshots {names}: name the folder of one")
    return found[0]


def _prepared(found: list[pathlib.Path], config: str | None, place: str) -> pathlib.Path:
    """The folder CONFIG/VERSION/HASH of a data set that `datasets` has prepared."""
    configs: dict[str, list[pathlib.Path]] = {}
    for path in found:
        configs.setdefault(path.parents[2].name, []).append(path.parent)
    folders = _choose(configs, config, "config", place)
    if len(folders) > 1:
        names = ", ".join(map(str, folders))
        raise UserError(f"{place} is prepared in several versions: name the folder of one: {names}")
    return folders[0]


def _prepared_splits(paths: list[pathlib.Path], info: dict[str, Any]) -> Splits:
    found: Splits = {}
    for path in paths:
        match = _SHARD.fullmatch(path.stem)
        stem = match["split"] if match else path.stem
        for name in info.get("splits") or ():
            if stem.endswith(f"-{name}"):
                found.setdefault(name, []).append(path)
    if not found:
        raise UserError(f"{paths[0].parent}: no .arrow file has the name of a split")
    return found


def _parquet_split(path: pathlib.Path) -> tuple[str, str]:
    """Configuration and split of a Parquet file, relative to its repository."""
    folder, split = path.parent, path.stem
    if match := _SHARD.fullmatch(path.stem):
        split = match["split"]
    elif path.stem.isdigit() and folder.name:
        folder, split = folder.parent, folder.name
    return (_DEFAULT if str(folder) in (".", "data") else str(folder)), split


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is a {type(found).__name__}, expected a JSON object")
    return found
