"""Members of tar shards by their names, as in WebDataset.

The first dot of a file name ends the key of an example: `0001.jpg`, `0001.txt` and `0001.seg.png`
belong together. Images whose names have further dots, as `a.0.jpg` and `a.1.jpg`, are examples of
their own: then the last dot ends the key.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from vit_jax.data.sources.folder import is_image
from vit_jax.data.sources.listing import LeftOut

ANNOTATIONS = ("txt", "json", "cls")


class Name(NamedTuple):
    """Parts of a member's name.

    Attributes:
        group: text before the first dot of the file name, with the folder.
        stem: text before the last dot.
        suffix: text after the last dot, in lower case.
    """

    group: str
    stem: str
    suffix: str

    @property
    def is_image(self) -> bool:
        """Whether the member is an image."""
        return is_image(f"x.{self.suffix}")


class Member(NamedTuple):
    """A member of a shard.

    Attributes:
        name: its name.
        start: first byte of its header.
        end: byte after its contents.
        label: class that it contains, see `tar_index.ROW`.
    """

    name: Name
    start: int
    end: int
    label: int


def split_name(name: str) -> Name:
    """Splits the name of a member."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    group = base.partition(".")[0]
    return Name(
        f"{folder}{slash}{group}", f"{folder}{slash}{stem if dot else base}", suffix.lower()
    )


def choose(names: Sequence[Name]) -> tuple[int, dict[str, int]]:
    """Chooses the image and the annotations of an example.

    Args:
        names: names of its members, of which at least one is an image.

    Returns:
        Index of the image, and of each annotation by its suffix. A member whose name has no further
        dots comes first among images; an annotation of the image's own stem comes first.
    """
    images = [i for i, name in enumerate(names) if name.is_image]
    image = min(images, key=lambda i: names[i].stem != names[i].group)
    chosen: dict[str, int] = {}
    for stem in (names[image].group, names[image].stem):
        for i, name in enumerate(names):
            if name.suffix in ANNOTATIONS and name.stem == stem:
                chosen[name.suffix] = i
    return image, chosen


def examples(members: Sequence[Member], left_out: LeftOut) -> list[list[Member]]:
    """Divides adjacent members with the same text before the first dot into examples.

    Args:
        members: the members.
        left_out: counts members that belong to no example.

    Returns:
        Adjacent members of each example.
    """
    parts = [[*members]]
    if not _is_one(members):
        parts = [[*part] for _, part in itertools.groupby(members, lambda m: m.name.stem)]
    found = []
    for part in parts:
        images = sum(member.name.is_image for member in part)
        name = f"{part[0].name.stem}.{part[0].name.suffix}"
        if images:
            found.append(part)
        else:
            left_out.add("members without an image", name, len(part))
        if images > 1:
            left_out.add("further images of an example", name, images - 1)
    return found


def _is_one(members: Sequence[Member]) -> bool:
    """Whether members with the same text before the first dot are one example."""
    group = members[0].name.group
    stems = {member.name.stem for member in members if member.name.is_image}
    if len(stems) < 2:
        return True
    own = {member.name.stem for member in members if member.name.suffix in ANNOTATIONS}
    if any(stem in own or stem[len(group) + 1 :].isdigit() for stem in stems - {group}):
        return False
    return group in stems | own
