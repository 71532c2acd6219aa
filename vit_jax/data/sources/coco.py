"""Boxes with class names in COCO's JSON, as COCO, LVIS and most tools for labelling write it."""

import dataclasses
import posixpath
from typing import Any

import numpy as np

from vit_jax.data.sources import coco_file
from vit_jax.data.sources.base import Rows, Source, check_index
from vit_jax.data.sources.boxes import ImageFiles, box_array
from vit_jax.errors import UserError


class Coco(Source):
    """Images with boxes, from one annotation file (`coco:ANNOTATIONS.json?images=DIR`).

    An example has, besides `image` and `key`:

    - `boxes`, float32 (n, 4), x0, y0, x1, y1 in pixels of the image, clipped to it;
    - `names`, the class of each box;
    - `crowd`, bool (n,), whether a box surrounds a group of objects;
    - `areas`, float32 (n,), the area of each object as in the file, px^2, or else of its box;
    - `segmentation`, polygons or RLE of each box as in the file, or None;
    - `scores`, float32 (n,), where the file has one for each box, as a file of detections;
    - `vocabulary`, the names of all classes, and `frequencies`, "r", "c" or "f" for each of them,
      where the file has LVIS's;
    - `negatives` and `not_exhaustive`, names, where the file has LVIS's `neg_category_ids` and
      `not_exhaustive_category_ids`: classes that are verified to be absent, and classes of which
      not all objects have a box. With either, other classes without boxes are unknown.

    Annotations that cannot be used are left out and counted when the file is opened.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Source.Config):
        """Options of the spec.

        Attributes:
            images: folder of the images; by default that of the annotation file.
        """

        images: str = ""

    def __init__(self, config: Config, place: str) -> None:
        """Reads the annotation file and lists the images.

        Args:
            config: options of the spec.
            place: path or URL of the annotation file.

        Raises:
            UserError: the file is not COCO's JSON, no annotation can be used, an id stands for two
                things, or no image exists.
        """
        content = coco_file.load(place)
        self.class_names, classes = coco_file.read_classes(content["categories"], place)
        self._frequencies = coco_file.read_frequencies(content["categories"], classes)
        folder = config.images or posixpath.dirname(place) or "."
        self._files = ImageFiles(folder, place)
        images = coco_file.read_images(content["images"], place)
        names = self._files.locate([each.files for each in images.values()])
        reader = coco_file.Annotations(images, classes, place)
        reader.add(content["annotations"])
        self._rows = Rows(reader.rows(names))

    @property
    def labels(self) -> None:
        """None: an image has several classes."""
        return None

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        row, example = self._rows[index], self.annotation(index)
        image = self._files.read(row["file"], example["key"])
        expected = (row["height"], row["width"])
        if image.shape != expected:
            raise UserError(
                f"{example['key']} has {image.shape[1]} x {image.shape[0]} px, its annotations are "
                f"for {expected[1]} x {expected[0]} px"
            )
        return {"image": image, **example}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        row = self._rows[check_index(index, len(self))]
        names = self.class_names or []
        example = {
            "key": self._files.key(row["file"]),
            "boxes": box_array(row["boxes"]),
            "names": [names[i] for i in row["classes"]],
            "crowd": np.array(row["crowd"], np.bool_),
            "areas": np.array(row["areas"], np.float32),
            "segmentation": row["segmentation"],
            "vocabulary": names,
        }
        if row["scores"] and None not in row["scores"]:
            example["scores"] = np.array(row["scores"], np.float32)
        if self._frequencies:
            example["frequencies"] = self._frequencies
        for field in coco_file.FEDERATED:
            if field in row:
                example[field] = [names[i] for i in row[field]]
        return example
