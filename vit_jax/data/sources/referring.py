"""Expressions that refer to an object, with its mask, in JSON lines: RefCOCO, PhraseCut."""

import dataclasses
import functools
from typing import Any

import numpy as np

from vit_jax.data.images import EncodedImage
from vit_jax.data.masks import box_of
from vit_jax.data.sources.annotated_lines import AnnotatedLines, image_path
from vit_jax.data.sources.base import brief, check_captions
from vit_jax.data.sources.boxes import ImageFiles, box_array, check_box, clip_box
from vit_jax.errors import UserError


class Referring(AnnotatedLines):
    """Images with phrases and masks (`referring:FILE.jsonl?images=DIR&masks=DIR`).

    One line is one object; `phrase` is a text, or a list of texts which all refer to it:

        {"image": "0.jpg", "phrase": "the red car", "segmentation": [[12, 30, 200, 30, 200, 160]]}
        {"image": "0.jpg", "phrase": ["left man", "man in black"], "mask": "0_1.png"}
        {"image": "1.jpg", "phrase": "a cat", "segmentation": {"size": [9, 9], "counts": "..."},
         "box": [2, 3, 8, 9]}

    A mask is a list of polygons, run lengths, or the path of an image of one channel, whose values
    above 0 are the object. Boxes are x0, y0, x1, y1 in pixels of the image; without one, it is
    that of the mask.

    An example has, besides `image` and `key`, `names`, the phrases; `segmentation` and `boxes`,
    the same for each of them; `crowd`, False; `vocabulary`, all phrases of the file. Lines that
    cannot be used are broken examples, counted when the file is opened.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(AnnotatedLines.Config):
        """Options of the spec.

        Attributes:
            masks: folder of the mask files; by default that of the images.
        """

        masks: str = ""

    def __init__(self, config: Config, place: str) -> None:
        """Reads the file and lists the images; see `AnnotatedLines`.

        Args:
            config: options of the spec.
            place: path or URL of the file.
        """
        super().__init__(config, place)
        self._mask_files = ImageFiles(config.masks or self._folder, place)

    @staticmethod
    def parse_line(line: dict[str, Any]) -> dict[str, Any]:
        """See `AnnotatedLines`."""
        phrases = check_captions(line.get("phrase"), "this line")
        image = image_path(line)
        if not phrases:
            raise UserError("expected a phrase, found none")
        given = [line[key] for key in ("segmentation", "mask") if line.get(key)]
        if len(given) != 1 or not isinstance(given[0], str | list | dict):
            raise UserError(f"expected segmentation or mask, found {sorted(line)}")
        box = line.get("box")
        if box is not None and (reason := check_box(box)):
            raise UserError(f"{reason}, as {brief(box)}")
        phrases = list(dict.fromkeys(phrases))
        return {"image": image, "phrases": phrases, "segmentation": given[0], "box": box}

    @functools.cached_property
    def phrases(self) -> list[str]:
        """All phrases of the file, once each."""
        rows = (self._rows[i] for i in range(len(self)))
        return list(dict.fromkeys(text for row in rows for text in row.get("phrases", ())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        example = self.annotation(index)
        image = self._files.read(self._rows[index]["image"], example["key"])
        height, width = image.shape
        box = example["boxes"][0].tolist()
        inside = clip_box(tuple(box), height, width)
        if inside is None:
            raise UserError(
                f"{example['key']}: box {box} is not inside the image of {width} x {height} px"
            )
        example["boxes"] = box_array([inside] * len(example["names"]))
        return {"image": image, **example}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        row = self._row(index)
        mask: Any = row["segmentation"]
        if isinstance(mask, str):
            mask = self._mask_files.read(mask, self._mask_files.key(mask))
        key, count = self._files.key(row["image"]), len(row["phrases"])
        return {
            "key": key,
            "names": row["phrases"],
            "segmentation": [mask] * count,
            "boxes": box_array([row["box"] or _box(mask, key)] * count),
            "crowd": np.zeros(count, np.bool_),
            "vocabulary": self.phrases,
        }


def _box(mask: dict | list | EncodedImage, key: str) -> list[float]:
    try:
        box = box_of(mask)
    except UserError as error:
        raise type(error)(f"{key}: {error}") from error
    if box is None or check_box(box):
        raise UserError(f"{key}: the mask is empty")
    return box
