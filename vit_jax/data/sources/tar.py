"""Tar shards in the layout of WebDataset, img2dataset and DataComp, with random access."""

import dataclasses
import io
import json
import pathlib
import tarfile
from typing import Any

import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import files, manifest
from vit_jax.data.sources.base import (
    Source,
    check_caption,
    check_index,
    decode_text,
    label_fields,
)
from vit_jax.data.sources.tar_index import (
    BAD_LABEL,
    DAMAGED,
    index_shards,
    is_image,
    read_index,
    split_name,
)
from vit_jax.errors import UserError


class TarShards(Source):
    """Images with `.txt`, `.json` or `.cls` members of the same key, in one or several tar files.

    An example has `image` and `key`; `captions` from `captions` or `caption` of the `.json` member
    or from the `.txt` member; `label` from the `.cls` member or `label` of the `.json` member, with
    `name` where classes have names. Reading an example takes one read of its shard. A place where a
    shard is truncated or damaged counts as one more example, which is broken.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            classes: path or URL of a file with one class name per line; by default the names in
                the manifest beside the first shard, or else the numbers themselves.
        """

        classes: str | None = None

    def __init__(self, config: Config, place: str) -> None:
        """Opens the shards and indexes those without an index.

        Args:
            config: options of the spec.
            place: pattern of the shards, see `files.expand`.

        Raises:
            UserError: no such shard, a shard that is compressed or no tar file, no images.
        """
        fs, paths = files.expand(place)
        self._open(fs, paths, index_shards(fs, paths), config.classes)
        if not len(self._rows):
            raise UserError(f"no images in {place}: expected members as 0001.jpg and 0001.txt")

    def _open(self, fs: Any, paths: list[str], index: pathlib.Path, classes: str | None) -> None:
        self._state = (fs, paths, index, classes)
        self._fs, self._paths, self._rows = fs, paths, read_index(index)
        self.class_names = manifest.class_names(fs, paths, classes)
        if self.class_names is None and (most := int(self._rows["label"].max(initial=-1))) >= 0:
            self.class_names = [str(label) for label in range(most + 1)]

    @property
    def labels(self) -> np.ndarray | None:
        """See `Source`."""
        if self.class_names is None:
            return None
        found = np.array(self._rows["label"], np.int64)
        if (found < 0).any():
            where = self._where(int(np.argmin(found)))
            raise UserError(f"{where} and {(found < 0).sum() - 1} others have no .cls with a class")
        return found

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        members, key = self._members(index)
        where = f"{self._where(index)}: {key}"
        example = self._annotation(members, where, index)
        suffix = next(suffix for suffix in members if is_image(suffix))
        return {"image": EncodedImage(members[suffix], where), **example, "key": key}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        members, key = self._members(index)
        return {**self._annotation(members, f"{self._where(index)}: {key}", index), "key": key}

    def _annotation(self, members: dict[str, bytes], where: str, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {}
        fields = _json_fields(members["json"], where) if "json" in members else {}
        if captions := fields.get("captions"):
            example["captions"] = [check_caption(text, where) for text in captions]
        elif "txt" in members:
            example["captions"] = [decode_text(members["txt"], f"the caption of {where}")]
        elif fields.get("caption") is not None:
            example["captions"] = [check_caption(fields["caption"], where)]
        label = int(self._rows[index]["label"]) if "cls" in members else fields.get("label")
        if label == BAD_LABEL:
            raise UserError(f"the .cls of {where} is {members['cls'][:20]!r}, expected a number")
        if label is not None:
            example |= label_fields(label, self.class_names, where)
        return example

    def _members(self, index: int) -> tuple[dict[str, bytes], str]:
        """Contents of an example's members by suffix, and its key."""
        index = check_index(index, len(self))
        row = self._rows[index]
        if row["label"] == DAMAGED:
            raise UserError(f"{self._where(index)}: the shard is truncated or damaged here")
        start, length = int(row["start"]), int(row["length"])
        data = files.read(self._fs, self._paths[row["shard"]], start, start + length)
        members: dict[str, bytes] = {}
        key = ""
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                for member in tar:
                    if member.isfile():
                        key, suffix = split_name(member.name)
                        members[suffix] = _contents(data, member)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise UserError(f"{self._where(index)}: {key or 'an example'}: {error}") from error
        if not any(map(is_image, members)):
            raise UserError(f"{self._where(index)}: changed since the shard was indexed")
        return members, key

    def _where(self, index: int) -> str:
        row = self._rows[index]
        return f"{self._paths[row['shard']]} at byte {row['start']}"

    def __reduce__(self) -> tuple:
        """Pickles the path of the index, which reader processes map into memory."""
        return _opened, self._state


def _opened(*state: Any) -> TarShards:
    source = TarShards.__new__(TarShards)
    source._open(*state)
    return source


def _contents(data: bytes, member: tarfile.TarInfo) -> bytes:
    found = data[member.offset_data : member.offset_data + member.size]
    if len(found) < member.size:
        raise tarfile.ReadError(f"{member.name} has {len(found)} of {member.size} bytes")
    return found


def _json_fields(data: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(decode_text(data, f"the .json of {where}"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"the .json of {where}: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"the .json of {where} is {type(fields).__name__}, expected an object")
    return fields
