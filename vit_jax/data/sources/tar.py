"""Tar shards in the layout of WebDataset, img2dataset and DataComp, with random access."""

import dataclasses
import io
import json
import pathlib
import tarfile
from typing import Any

import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import files, manifest, patterns
from vit_jax.data.sources.base import (
    Source,
    check_captions,
    check_index,
    decode_text,
    label_fields,
    parse_label,
)
from vit_jax.data.sources.classes import numbered
from vit_jax.data.sources.listing import is_hidden
from vit_jax.data.sources.tar_index import DAMAGED, DAMAGES, NAMED, index_shards, read_index
from vit_jax.data.sources.tar_members import Name, choose, split_name
from vit_jax.errors import UserError, printable


class TarShards(Source):
    """Images with `.txt`, `.json` or `.cls` members of the same key, in one or several tar files.

    An example has `image` and `key`, see `tar_members`; `captions` from `captions` of the `.json`
    member, from the `.txt` member or from `caption` of the `.json` member; `label` from the `.cls`
    member or `label` of the `.json` member, with `name` where classes have names. Reading an
    example takes one read of its shard. A place where a shard is truncated or damaged counts as one
    more example, which is broken.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the spec.

        Attributes:
            classes: path or URL of a file with one class name per line; by default the names in
                the manifest beside the shards, or else the numbers themselves. Labels that are
                names need the file.
        """

        classes: str | None = None

    def __init__(self, config: Config, place: str) -> None:
        """Opens the shards and indexes those without an index.

        Args:
            config: options of the spec.
            place: pattern of the shards, see `patterns.expand`.

        Raises:
            UserError: no such shard, a shard that is compressed or no tar file, no images.
        """
        fs, paths = patterns.expand(place, (".tar",))
        index, left_out = index_shards(fs, paths)
        left_out.log(place)
        self._open(fs, paths, index, config.classes)
        if not len(self._rows):
            raise UserError(f"no images in {place}: expected members as 0001.jpg and 0001.txt")

    def _open(self, fs: Any, paths: list[str], index: pathlib.Path, classes: str | None) -> None:
        self._state = (fs, paths, index, classes)
        self._fs, self._paths, self._rows = fs, paths, read_index(index)
        self.class_names = manifest.class_names(fs, paths, classes)
        if self.class_names is None and (most := int(self._rows["label"].max(initial=-1))) >= 0:
            self.class_names = numbered(most, paths[0])

    @property
    def labels(self) -> np.ndarray | None:
        """See `Source`."""
        if self.class_names is None:
            return None
        found = np.array(self._rows["label"], np.int64)
        for index in np.flatnonzero(found == NAMED):
            found[index] = self.annotation(int(index))["label"]
        if (found < 0).any():
            where = self._where(int(np.argmin(found)))
            raise UserError(f"{where} and {(found < 0).sum() - 1} others have no .cls with a class")
        return found

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        image, fields = self._read(index)
        return {"image": EncodedImage(image, self._where(index, fields["key"])), **fields}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        return self._read(index)[1]

    def _read(self, index: int) -> tuple[bytes, dict[str, Any]]:
        """Reads the image and the other fields of an example."""
        members = self._members(index)
        names = [name for name, _ in members]
        if not any(name.is_image for name in names):
            raise UserError(f"{self._where(index)}: changed since the shard was indexed")
        image, chosen = choose(names)
        name = names[image]
        key = printable(name.stem)
        annotations = {suffix: members[i][1] for suffix, i in chosen.items()}
        fields = self._annotation(annotations, self._where(index, key))
        return members[image][1], {**fields, "key": key}

    def _annotation(self, members: dict[str, bytes], where: str) -> dict[str, Any]:
        example: dict[str, Any] = {}
        fields = _json_fields(members["json"], where) if "json" in members else {}
        captions = check_captions(fields.get("captions"), where)
        if not captions and "txt" in members:
            captions = check_captions(members["txt"], where)
        if captions := captions or check_captions(fields.get("caption"), where):
            example["captions"] = captions
        label = parse_label(members.get("cls"))
        label = parse_label(fields.get("label")) if label is None else label
        if isinstance(label, str) and self.class_names is None:
            example["name"] = label
        elif self.class_names is not None and label is not None and label != -1:
            example |= label_fields(label, self.class_names, where)
        return example

    def _members(self, index: int) -> list[tuple[Name, bytes]]:
        """Names and contents of an example's members."""
        index = check_index(index, len(self))
        row = self._rows[index]
        if row["label"] == DAMAGED:
            raise UserError(f"{self._where(index)}: the shard is truncated or damaged here")
        start, length = int(row["start"]), int(row["length"])
        data = files.read(self._fs, self._paths[row["shard"]], start, start + length)
        members = []
        key = ""
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                for member in tar:
                    if member.isfile() and not is_hidden(member.name):
                        name = split_name(member.name)
                        key = name.stem
                        members.append((name, _contents(data, member)))
        except DAMAGES as error:
            raise UserError(printable(f"{self._where(index)}: {key}: {error}")) from error
        return members

    def _where(self, index: int, key: str = "") -> str:
        row = self._rows[index]
        place = printable(f"{self._paths[row['shard']]} at byte {row['start']}")
        return f"{place}: {key}" if key else place

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
    except (ValueError, RecursionError) as error:
        raise UserError(f"the .json of {where}: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"the .json of {where} is {type(fields).__name__}, expected an object")
    return fields
