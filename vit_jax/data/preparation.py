"""Shards of any source, written in parallel and resumed where they were interrupted."""

import concurrent.futures
import hashlib
import io
import json
import multiprocessing
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.atomic_files import atomic_write, write_text
from vit_jax.data import shards
from vit_jax.data.images import MAX_PIXELS
from vit_jax.data.progress import progress
from vit_jax.data.sources import open_source
from vit_jax.data.sources.array_record import LABELS_NAME
from vit_jax.data.sources.manifest import FILE_NAME
from vit_jax.errors import UserError
from vit_jax.paths import StrPath, as_path, is_url

if TYPE_CHECKING:
    from etils import epath


def prepare(
    spec: str,
    output: StrPath,
    *,
    format: str = "array_record",
    shards_count: int = 0,
    workers: int = 1,
    image_size: int = 0,
    quality: int = 0,
    max_image_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Writes the shards that are not written yet.

    Args:
        spec: spec of the source.
        output: folder, local or, for tar shards, in a bucket: new, empty, or of an interrupted call
            with the same arguments.
        format: "array_record" or "tar".
        shards_count: number of shards; 0 for one per 10,000 examples.
        workers: number of processes.
        image_size: shortest side to which larger images are scaled down, px; 0 keeps all sizes.
        quality: JPEG quality of encoded images; 0 keeps the files of images that are not scaled.
        max_image_pixels: pixels above which an image counts as broken; 0 for any number.

    Returns:
        The manifest.

    Raises:
        UserError: the folder has other content, or the source cannot be opened.
    """
    if format != "tar" and is_url(output):
        raise UserError(
            f"{output}: ArrayRecord shards are read from local disks: give --format=tar, or a "
            "local folder"
        )
    folder = as_path(output)
    source = open_source(spec)
    count = shards_count or -(-len(source) // 10_000)
    if count > len(source):
        raise UserError(f"--shards={count}: the source has only {len(source)} examples")
    settings = {
        "input": spec,
        "input_examples": len(source),
        "format": format,
        "shards_count": count,
        "image_size": image_size,
        "quality": quality,
        "max_image_pixels": max_image_pixels,
        "class_names": source.class_names,
    }
    manifest = _begin(folder, settings)
    names = [f"{number:05d}.{format}" for number in range(count)]
    bounds = [len(source) * number // count for number in range(count + 1)]
    jobs = [
        shards.Job(
            spec, str(folder / name), format, first, last, image_size, quality, max_image_pixels
        )
        for name, first, last in zip(names, bounds, bounds[1:], strict=False)
        if not _is_finished(folder / name, manifest["shards"].get(name))
    ]
    spawn = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    others = set(multiprocessing.active_children())
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        try:
            running = [pool.submit(shards.write, job) for job in jobs]
            done = concurrent.futures.as_completed(running)
            for future in progress(done, "Writing shards", total=len(running)):
                name, entry = future.result()
                manifest["shards"][name] = entry
                _save(folder, manifest)
        except BaseException:  # also Ctrl-C: the next call writes what is missing
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            raise
    _finish(folder, manifest, names)
    return manifest


def _begin(folder: "epath.Path", settings: dict[str, Any]) -> dict[str, Any]:
    """Reads the manifest of an interrupted call, or starts a new one."""
    path = folder / FILE_NAME
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and has no {FILE_NAME}: name a new folder")
        manifest = {**settings, "shards": {}}
        _save(folder, manifest)
        return manifest
    try:
        manifest = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("shards"), dict):
        raise UserError(f"{path} is not the manifest of a prepared set: name a new folder")
    for key, value in settings.items():
        if manifest.get(key, value) != value:
            raise UserError(
                f"{folder} was prepared with {key}={manifest.get(key)!r}, not {value!r}: name a "
                "new folder"
            )
    return manifest


def _is_finished(path: "epath.Path", entry: dict[str, Any] | None) -> bool:
    size = entry.get("bytes") if isinstance(entry, dict) else None
    return size is not None and path.exists() and path.stat().length == size


def _finish(folder: "epath.Path", manifest: dict[str, Any], names: list[str]) -> None:
    """Adds totals to the manifest and joins the labels of all examples in one file."""
    entries = [manifest["shards"][name] for name in names]
    manifest["shards"] = dict(zip(names, entries, strict=True))
    manifest["examples"] = sum(entry["examples"] for entry in entries)
    manifest["broken"] = sum(entry["broken"] for entry in entries)
    if not manifest["examples"]:
        reasons = [reason for entry in entries for reason in entry["broken_named"]]
        raise UserError(f"none of the examples can be read, the first: {reasons[0]}")
    parts = [folder / f"{name}{shards.LABELS_SUFFIX}" for name in names]
    if manifest["class_names"] is not None and all(part.exists() for part in parts):
        labels = np.concatenate([np.load(io.BytesIO(part.read_bytes())) for part in parts])
        with atomic_write(folder / LABELS_NAME) as partial:
            shards.save_array(partial, labels)
            manifest["labels_sha256"] = hashlib.sha256(partial.read_bytes()).hexdigest()
    _save(folder, manifest)


def _save(folder: "epath.Path", manifest: dict[str, Any]) -> None:
    write_text(folder / FILE_NAME, json.dumps(manifest, indent=1) + "\n")
