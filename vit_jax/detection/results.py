"""Results of several images, and checks of arguments that `detect` and `classify_boxes` share."""

from collections.abc import Sequence

import numpy as np

from vit_jax.detection.coco import write_coco
from vit_jax.detection.images import Images
from vit_jax.detection.selection import Boxes, Detections
from vit_jax.errors import UserError
from vit_jax.paths import StrPath


class Results:
    """Collects the detections of images in the order in which they are found."""

    def __init__(self, images: Images, names: Sequence[str], classes: Sequence[str]) -> None:
        """Starts without detections.

        Args:
            images: the images.
            names: names as they were given, maybe with repetitions.
            classes: different names, to which the labels of boxes refer. It may grow.
        """
        self._images, self._names, self._classes = images, names, classes
        self._found: list[Detections] = []

    def add(self, row: int, height: int, width: int, kept: Boxes) -> None:
        """Adds an image.

        Args:
            row: position of the image.
            height: height of the image, px.
            width: width of the image, px.
            kept: its detections.
        """
        names = [self._classes[label] for label in kept.labels]
        labels = np.array([self._names.index(name) for name in names], np.int32)
        self._found.append(
            Detections(
                self._images.keys[row],
                height,
                width,
                kept.boxes,
                kept.scores,
                labels,
                names,
            )
        )

    def finish(self, output: StrPath | None) -> Detections | list[Detections]:
        """Returns the detections of the only image, or those of each image.

        Args:
            output: file for all detections in COCO's JSON; None for none.
        """
        if output is not None:
            write_coco(output, self._found, self._classes)
        return self._found[0] if self._images.single else self._found


def check_output(output: StrPath | None, images: Images) -> None:
    """Refuses a file for the detections of images that have no paths."""
    if output is not None and not all(images.keys):
        raise UserError("output names the files of the images: expected paths, found arrays")


def check_names(names: Sequence[str] | None) -> list[str]:
    """Returns different names in their order.

    Args:
        names: names to look for.

    Raises:
        UserError: no names, or an empty one.
    """
    if isinstance(names, str):
        raise UserError(f"names={names!r}: expected a list of names, as [{names!r}]")
    if not names:
        raise UserError("names is empty: expected at least one name")
    for position, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"name {position} is {name!r}: expected a word or a phrase")
    return list(dict.fromkeys(names))


def check_fractions(**values: float | None) -> None:
    """Refuses values by name that are neither None nor in [0, 1]."""
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name}={value}: expected a fraction from 0 to 1")
