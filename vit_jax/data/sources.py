"""One interface for every source of pictures: random access, decoded uint8 pictures, names.

`open_source` takes a short spec:

    emoji:train, emoji:heldout_names, emoji:heldout_artist   the embedded emoji
    digits:train, mnist5k:test, fashion_mnist:test           small labelled sets
    folder:/path/to/dir                                      one sub-folder a class
    digits:train[:80%], emoji:train[100:200]                 a part, as in TFDS

Sources are picklable and cheap to send: a Grain worker, which is spawned, opens its own copy.
"""

import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from vit_jax.data.embedded import labelled
from vit_jax.data.pictures import read_image
from vit_jax.errors import UserError, lookup, unknown

SPLITS: dict[str, tuple[str, ...]] = {
    "emoji": ("train", "heldout_names", "heldout_base", "heldout_artist"),
    **dict.fromkeys(labelled.LOADERS, labelled.SPLITS),
}
"""Names of the embedded sets and of their splits."""

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
_SLICE = re.compile(r"(?P<whole>.*)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]", re.DOTALL)


class Source(Protocol):
    """Random access to examples. Examples are shared: copy a picture before writing into it.

    An example has `image`, uint8 (H, W, 3), or (H, W, 4) where the picture has transparency, and
    `label`, int; sources with text have `captions`, list[str], the canonical one first, and `name`.

    Attributes:
      class_names: one name for each label, None where there are no classes.
      labels: (N,) int64, the label of every example without decoding pictures, or None.
    """

    @property
    def class_names(self) -> list[str] | None: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def annotation(self, index: int) -> dict[str, Any]:
        """The example without `image`, at no picture's cost."""
        ...


def open_source(spec: str, names_file: str | os.PathLike[str] | None = None) -> Source:
    """Opens a source by its short spec (see the module's docstring).

    Args:
      spec: "name:split" or "folder:/path", a part of it in brackets.
      names_file: for a flat folder, the file of its labels, see `ImageFolder`.

    Raises:
      UserError: unknown name or split (the nearest valid one is named), a bad slice, no such folder
        or names file; its kind MissingPackageError where the package with the data is absent.
    """
    match = _SLICE.fullmatch(spec)
    whole = match["whole"] if match else spec
    name, _, split = whole.partition(":")
    source: Source
    if name == "folder":
        source = ImageFolder(split, names_file)
    elif names_file is not None:
        raise UserError(f"a names file goes with a folder: source, not with {spec!r}")
    else:
        splits = lookup({**SPLITS, "folder": ()}, name, "data set")
        if split not in splits:
            raise unknown(split, splits, f"split of {name}")
        source = EmojiSource(split) if name == "emoji" else LabelledSource(name, split)
    if match is None:
        return source
    return Subset(source, _resolve_slice(match["start"], match["stop"], len(source), spec))


class EmojiSource:
    """A split of the embedded emoji; builds them into the user's cache at the first use.

    An example: `image` (64, 64, 4) uint8 RGBA; `captions`, the full caption, the name without skin
    tone and the aliases; `label` and `name`; `emoji`, `category`, `artist`, `skin_tone`, `toned`.
    A decoded picture stays in memory (16 KB), so that the next epoch costs microseconds.
    """

    def __init__(self, split: str, directory: str | os.PathLike[str] | None = None) -> None:
        """Args: split, one of SPLITS["emoji"]; directory, what `emoji.build` gave."""
        from vit_jax.data.embedded import emoji  # Imports TFDS.

        self._split = split
        self._directory = os.fspath(directory if directory is not None else emoji.build())
        self.class_names = emoji.base_names()
        self._rows = [_emoji_example(row) for row in emoji.read_split(split, self._directory)]
        self.labels = np.array([row["label"] for row in self._rows], np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        if isinstance(row["image"], bytes):
            row["image"] = read_image(row["image"])
        return dict(row)

    def annotation(self, index: int) -> dict[str, Any]:
        return {key: value for key, value in self._rows[index].items() if key != "image"}

    def __reduce__(self) -> tuple:
        return EmojiSource, (self._split, self._directory)


def _emoji_example(row: dict[str, Any]) -> dict[str, Any]:
    captions = list(dict.fromkeys([row.pop("caption"), row["name"], *row.pop("aliases")]))
    return {**row, "captions": captions, "toned": bool(row["skin_tone"])}


class LabelledSource:
    """A split of a set of `embedded.labelled`: `image` (H, W, 3) uint8, `label` and `name`."""

    def __init__(self, name: str, split: str) -> None:
        """Args: name, a key of labelled.LOADERS; split, "train" or "test"."""
        self._spec = (name, split)
        data = labelled.load(name, split)
        self._images = data.images
        self.labels = data.labels
        self.class_names = list(data.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.repeat(self._images[index][:, :, None], 3, axis=2)
        return {"image": image, **self.annotation(index)}

    def annotation(self, index: int) -> dict[str, Any]:
        label = int(self.labels[index])
        return {"label": label, "name": self.class_names[label]}

    def __reduce__(self) -> tuple:
        return LabelledSource, self._spec


class ImageFolder:
    """Pictures of a folder: one sub-folder a class, or a flat folder with a names file.

    A line of the names file is `file.png<TAB>label name`; without a tab the first comma separates.
    The pictures it names are the source, in its order; others in the folder are left out.
    An example has `image`, `label`, `name`, `captions` ([name]) and `path`.

    Raises:
      UserError: no such folder or names file, no pictures, an empty class, a names file that cannot
        be understood or names absent files. A picture that cannot be read raises when asked for.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        names_file: str | os.PathLike[str] | None = None,
    ) -> None:
        root = pathlib.Path(folder).expanduser()
        if not root.exists():
            raise UserError(f"no image folder {root}")
        if not root.is_dir():
            raise UserError(f"{root} is a file, expected a folder of pictures")
        found = _read_names(pathlib.Path(names_file), root) if names_file else _read_classes(root)
        self._paths = [path for path, _ in found]
        self.class_names = sorted({name for _, name in found})
        index = {name: label for label, name in enumerate(self.class_names)}
        self.labels = np.array([index[name] for _, name in found], np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": read_image(self._paths[index]), **self.annotation(index)}

    def annotation(self, index: int) -> dict[str, Any]:
        label = int(self.labels[index])
        name = self.class_names[label]
        return {"label": label, "name": name, "captions": [name], "path": str(self._paths[index])}


class Subset:
    """A range of another source's examples; the classes stay those of the whole."""

    def __init__(self, source: Source, indices: range) -> None:
        self._source, self._indices = source, indices
        self.class_names = source.class_names
        whole = source.labels
        self.labels = None if whole is None else whole[indices.start : indices.stop]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._indices[index]]

    def annotation(self, index: int) -> dict[str, Any]:
        return self._source.annotation(self._indices[index])


def _read_classes(root: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    """(picture, class name) of a folder with one sub-folder a class, sorted."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if loose := _pictures(root.iterdir()):
        raise UserError(
            f"{root} has pictures outside class folders, as {loose[0].name}: move them into one "
            "sub-folder a class, or give a names file with lines `file.png<TAB>label name`"
        )
    found = {folder: _pictures(folder.rglob("*")) for folder in folders}
    if not any(found.values()):
        raise UserError(f"no pictures in {root}: expected sub-folders of {_suffix_list()} files")
    if empty := [folder.name for folder, paths in found.items() if not paths]:
        raise UserError(f"class folders without pictures in {root}: {', '.join(empty[:5])}")
    return [(path, folder.name) for folder, paths in found.items() for path in paths]


def _read_names(names_file: pathlib.Path, root: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    """(picture, label name) of every line of a names file."""
    if not names_file.is_file():
        raise UserError(f"no names file {names_file}")
    try:
        lines = names_file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"the names file {names_file} is not UTF-8 text: {error}") from error
    found: dict[pathlib.Path, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        file, separator, name = line.partition("\t" if "\t" in line else ",")
        path, name = root / file.strip(), name.strip()
        if not (separator and file.strip() and name):
            raise UserError(
                f"{names_file}:{number}: expected `file.png<TAB or comma>label name`, got {line!r}"
            )
        if found.setdefault(path, name) != name:
            raise UserError(f"{names_file}:{number}: {file.strip()} is also {found[path]!r} above")
    if not found:
        raise UserError(f"the names file {names_file} is empty: expected lines of file and label")
    if absent := [path.name for path in found if not path.is_file()]:
        raise UserError(
            f"{names_file} names {len(absent)} files that are not in {root}: "
            f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}"
        )
    return list(found.items())


def _pictures(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    return sorted(p for p in paths if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))


def _suffix_list() -> str:
    return " ".join(sorted(_SUFFIXES))


def _resolve_slice(start: str | None, stop: str | None, total: int, spec: str) -> range:
    """The index range of `[start:stop]`, each an index or a percentage, negative from the end."""

    def position(text: str | None, default: int) -> int:
        if text is None:
            return default
        number = int(text.removesuffix("%"))
        offset = round(total * number / 100) if text.endswith("%") else number
        return offset + total if text.startswith("-") else offset

    first, last = position(start, 0), position(stop, total)
    if not 0 <= first < last <= total:
        raise UserError(
            f"the slice of {spec!r} is [{first}:{last}], but the source has {total} examples: "
            "expected 0 <= start < stop <= that"
        )
    return range(first, last)
