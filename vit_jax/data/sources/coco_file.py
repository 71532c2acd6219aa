"""Reading of COCO's JSON: classes, images and annotations, with checks of what strangers write."""

import dataclasses
import json
import logging
import math
import reprlib
from collections.abc import Iterator
from typing import Any

from vit_jax.data.sources import files
from vit_jax.data.sources.base import brief
from vit_jax.data.sources.boxes import TOLERANCE, Box, check_box, clip_box, overhang
from vit_jax.data.sources.listing import LeftOut
from vit_jax.errors import UserError, printable

logger = logging.getLogger(__name__)

Id = int | str

FEDERATED = {
    "negatives": "neg_category_ids",
    "not_exhaustive": "not_exhaustive_category_ids",
}
"""Field of an example -> key of LVIS with ids of categories."""


def load(place: str) -> dict[str, list]:
    """Reads the lists of an annotation file.

    Args:
        place: path or URL.

    Returns:
        The lists `images`, `annotations` and `categories`.

    Raises:
        UserError: the file is absent, no JSON, or lacks one of the lists.
    """
    fs, path = files.file_system(place)
    try:
        content = json.loads(files.read(fs, path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {error}") from error
    if isinstance(content, list):
        raise UserError(
            f"{place} is a list, as a file of detections: expected COCO's object with images, "
            "annotations and categories"
        )
    found = {}
    for key in ("images", "annotations", "categories"):
        value = content.get(key) if isinstance(content, dict) else None
        if value is None:
            keys = ", ".join(map(str, content)) if isinstance(content, dict) else brief(content)
            raise UserError(
                f"{place} has no {key}: expected images, annotations and categories, found "
                f"{printable(keys)[:200] or 'nothing'}"
            )
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise UserError(
                f"{place}: expected {key} as a list of objects, found "
                f"{printable(reprlib.repr(value))}"
            )
        found[key] = value
    if not found["images"]:
        raise UserError(f"{place} has no images")
    return found


def _identifier(value: Any) -> Id | None:
    """An id as it is compared: 7, 7.0 and "7" are equal. None where the value is no id."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        value = value.strip()
        plain = value.isascii() and value.isdigit() and str(int(value)) == value
        return int(value) if plain else value or None
    return value if isinstance(value, int) else None


def read_classes(categories: list[dict[str, Any]], place: str) -> tuple[list[str], dict[Id, int]]:
    """Reads the classes. Categories of one name are one class, which is logged.

    Args:
        categories: categories of the file.
        place: path of the file, for messages.

    Returns:
        Names of the classes, in the order of their ids, and the class of each id.

    Raises:
        UserError: a category without id or name, or an id with two names.
    """
    by_id: dict[Id, str] = {}
    for category in categories:
        identifier, name = _identifier(category.get("id")), category.get("name")
        if identifier is None or not isinstance(name, str) or not name.strip():
            raise UserError(
                f"{place}: expected a category with an id and a name, found "
                f"{printable(reprlib.repr(category))}"
            )
        name = name.strip()
        if by_id.setdefault(identifier, name) != name:
            raise UserError(
                f"{place}: the category id {identifier!r} stands for {by_id[identifier]!r} and for "
                f"{name!r}"
            )
    numbered = all(isinstance(each, int) for each in by_id)
    ids = sorted(by_id, key=lambda each: int(each)) if numbered else list(by_id)
    names = list(dict.fromkeys(by_id[each] for each in ids))
    if len(names) < len(ids):
        twice = next(name for name in names if list(by_id.values()).count(name) > 1)
        same = ", ".join(repr(each) for each in ids if by_id[each] == twice)
        logger.warning(
            "%s: %d categories have the name of another one and are the same class, as %r (ids %s)",
            place, len(ids) - len(names), twice, same,
        )  # fmt: skip
    positions = {name: i for i, name in enumerate(names)}
    return names, {each: positions[by_id[each]] for each in ids}


@dataclasses.dataclass
class ImageRecord:
    """One image of the file.

    Attributes:
        files: its possible file names, the likeliest first.
        height: height, px.
        width: width, px.
        fields: `boxes`, `classes`, `crowd`, `areas`, `segmentation` and `scores` of its
            annotations.
        federated: category ids by key of `FEDERATED`.
    """

    files: tuple[str, ...]
    height: int
    width: int
    fields: dict[str, list]
    federated: dict[str, list]


def read_frequencies(categories: list[dict[str, Any]], classes: dict[Id, int]) -> list[str] | None:
    """Reads how frequent each class is in LVIS's training data.

    Args:
        categories: categories of the file.
        classes: class of each category id, see `read_classes`.

    Returns:
        "r" (in at most 10 images), "c" (in at most 100) or "f" for each class; None where a
        category has none of them.
    """
    found = {classes[_key(each.get("id"))]: str(each.get("frequency")) for each in categories}
    if not all(each in ("r", "c", "f") for each in found.values()):
        return None
    return [found[i] for i in sorted(found)]


def read_images(records: list[dict[str, Any]], place: str) -> dict[Id, ImageRecord]:
    """Reads the images.

    Args:
        records: images of the file.
        place: path of the file, for messages.

    Returns:
        Images by id.

    Raises:
        UserError: an image without id, file or size, or an id with two files.
    """
    found: dict[Id, ImageRecord] = {}
    left_out, kept, files_seen = LeftOut(), LeftOut(), set[str]()
    for record in records:
        identifier, names = _identifier(record.get("id")), _file_names(record)
        height, width = _side(record.get("height")), _side(record.get("width"))
        if identifier is None or not names or height is None or width is None:
            raise UserError(
                f"{place}: expected an image with id, file_name, height and width (px), found "
                f"{printable(reprlib.repr(record))}"
            )
        if (known := found.get(identifier)) is not None:
            if known.files != names:
                raise UserError(
                    f"{place}: the image id {identifier!r} stands for {known.files[0]!r} and for "
                    f"{names[0]!r}"
                )
            left_out.add("images that are listed twice", names[0])
            continue
        keys = ("boxes", "classes", "crowd", "areas", "segmentation", "scores")
        fields: dict[str, list] = {key: [] for key in keys}
        federated = {
            field: record[key]
            for field, key in FEDERATED.items()
            if isinstance(record.get(key), list)
        }
        found[identifier] = ImageRecord(names, height, width, fields, federated)
        if names[0] in files_seen:
            kept.add("images with the file of another one", names[0])
        files_seen.add(names[0])
    left_out.log(place)
    kept.log(place, "kept")
    return found


def _file_names(record: dict[str, Any]) -> tuple[str, ...]:
    """Possible file names of an image; LVIS has only the URL, as .../train2017/000000391895.jpg."""
    if isinstance(name := record.get("file_name"), str) and name.strip():
        return (name.strip(),)
    if isinstance(url := record.get("coco_url"), str) and "/" in url:
        folder, base = url.rstrip("/").split("/")[-2:]
        return (f"{folder}/{base}", base)
    return ()


def _side(value: Any) -> int | None:
    number = _identifier(value)
    return number if isinstance(number, int) and number > 0 else None


class Annotations:
    """Sorts annotations by image, and counts those that cannot be used."""

    def __init__(self, images: dict[Id, ImageRecord], classes: dict[Id, int], place: str) -> None:
        """Starts without annotations.

        Args:
            images: result of `read_images`.
            classes: class of each category id.
            place: path of the file, for messages.
        """
        self._images, self._classes, self._place = images, classes, place
        self._left_out, self._clipped, self._shared = LeftOut(), LeftOut(), LeftOut()
        self._known: dict[Id, int] = {}

    def add(self, records: list[dict[str, Any]]) -> None:
        """Takes all annotations, and logs how many are left out or clipped.

        Args:
            records: annotations of the file.

        Raises:
            UserError: none of them can be used.
        """
        used = 0
        for record in records:
            name = f"annotation {record.get('id')!r}"
            reason = self._add(record, name)
            if reason is None:
                used += 1
            else:
                self._left_out.add(reason, name)
        if records and not used:
            reasons = ", ".join(f"{n:,} {why}" for why, (n, _) in self._left_out.counts.items())
            raise UserError(f"{self._place}: no annotation can be used: {reasons}")
        if not records:
            logger.warning("%s has no annotations: its images have no boxes", self._place)
        self._left_out.log(self._place)
        self._clipped.log(self._place, "clipped")
        self._shared.log(self._place, "kept")

    def _add(self, record: dict[str, Any], name: str) -> str | None:
        """Takes one annotation; returns the reason why it cannot be used."""
        image = self._images.get(_key(record.get("image_id")))
        if image is None:
            return "annotations of images that are not in the file"
        label = self._classes.get(_key(record.get("category_id")))
        if label is None:
            return "annotations whose category id is not among the categories"
        values = record.get("bbox")
        box = _corners(values)
        if (reason := check_box(box)) is not None:
            return reason
        inside = clip_box(box, image.height, image.width)
        if inside is None:
            return "boxes outside their image"
        if self._is_repeat(record, label, box, name):
            return "annotations that are listed twice"
        if overhang(box, image.height, image.width) > TOLERANCE:
            self._clipped.add("boxes that reach outside their image", name)
        image.fields["boxes"].append(inside)
        image.fields["classes"].append(label)
        image.fields["crowd"].append(bool(record.get("iscrowd")))
        image.fields["areas"].append(_area(record.get("area"), inside))
        image.fields["segmentation"].append(record.get("segmentation"))
        image.fields["scores"].append(_finite(record.get("score")))
        return None

    def _is_repeat(self, record: dict[str, Any], label: int, box: Any, name: str) -> bool:
        """Whether an annotation of the same id and content was taken before."""
        identifier = _identifier(record.get("id"))
        if identifier is None:
            return False
        content = hash((_key(record.get("image_id")), label, tuple(box)))
        if identifier not in self._known:
            self._known[identifier] = content
        elif self._known[identifier] == content:
            return True
        else:
            self._shared.add("annotations with the id of another one", name)
        return False

    def rows(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """Rows of the source.

        Args:
            names: file of each image.
        """
        unknown = LeftOut()
        for image, file in zip(self._images.values(), names, strict=True):
            row = {"file": file, "height": image.height, "width": image.width, **image.fields}
            for field, ids in image.federated.items():
                known = [self._classes[i] for i in map(_key, ids) if i in self._classes]
                row[field] = known
                if len(known) < len(ids):
                    unknown.add(
                        f"ids of {FEDERATED[field]} that are not among the categories", file
                    )
            yield row
        unknown.log(self._place)


def _key(value: Any) -> Id:
    """An id to look up; "" where the value is none."""
    identifier = _identifier(value)
    return "" if identifier is None else identifier


def _area(value: Any, box: Box) -> float:
    """Area of an object, px^2; that of its box where the file has none."""
    number = _finite(value)
    if number is not None and number > 0:
        return number
    return (box[2] - box[0]) * (box[3] - box[1])


def _finite(value: Any) -> float | None:
    """A finite number of JSON; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and -math.inf < value < math.inf else None


def _corners(values: Any) -> Any:
    """COCO's x, y, width, height as x0, y0, x1, y1; anything else unchanged."""
    try:
        x, y, width, height = values
        return (x, y, x + width, y + height)
    except (TypeError, ValueError):
        return values
