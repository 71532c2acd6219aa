"""Captions whose phrases have boxes, in JSON lines."""

import re
from typing import Any

import numpy as np

from vit_jax.data.sources.annotated_lines import AnnotatedLines, image_path
from vit_jax.data.sources.base import brief, check_captions
from vit_jax.data.sources.boxes import (
    TOLERANCE,
    box_array,
    check_box,
    clip_box,
    overhang,
)
from vit_jax.errors import UserError

Span = list[int]


class Grounding(AnnotatedLines):
    """Images with a caption and boxes of its phrases (`grounding:FILE.jsonl?images=DIR`).

    One line is one example:

        {"image": "0.jpg", "caption": "a red car beside a tree", "regions": [
            {"box": [12, 30, 200, 160], "phrase": "a red car"},
            {"box": [210, 5, 300, 170], "spans": [[17, 23]]}]}

    Boxes are x0, y0, x1, y1 in pixels of the image. A phrase occurs in the caption once; spans
    are pairs of the first character and the one after the last. An example has, besides `image` and
    `key`, `captions` (a list with the caption), `boxes`, float32 (n, 4); `spans`, the pairs of each
    box; `names`, its phrase; `crowd`, False for each. Lines that cannot be used are broken
    examples, counted when the file is opened.
    """

    @staticmethod
    def parse_line(line: dict[str, Any]) -> dict[str, Any]:
        """See `AnnotatedLines`."""
        captions = check_captions(line.get("caption"), "this line")
        image = image_path(line)
        if len(captions) != 1:
            raise UserError(f"expected one caption, found {len(captions)}")
        regions = line.get("regions")
        if not isinstance(regions, list) or not all(isinstance(each, dict) for each in regions):
            raise UserError(f"regions is {brief(regions)}, expected a list of objects")
        spans = [_spans(region, captions[0]) for region in regions]
        for region in regions:
            if reason := check_box(region.get("box")):
                raise UserError(f"{reason}, as {brief(region.get('box'))}")
        boxes = [region["box"] for region in regions]
        return {"image": image, "caption": captions[0], "boxes": boxes, "spans": spans}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        example = self.annotation(index)
        image = self._files.read(self._rows[index]["image"], example["key"])
        height, width = image.shape
        for i, box in enumerate(map(tuple, example["boxes"].tolist())):
            inside = clip_box(box, height, width)
            if inside is None or overhang(box, height, width) > TOLERANCE:
                raise UserError(
                    f"{example['key']}: box {box} is not inside the image of {width} x {height} px"
                )
            example["boxes"][i] = inside
        return {"image": image, **example}

    def annotation(self, index: int) -> dict[str, Any]:
        """See `Source`."""
        row = self._row(index)
        caption = row["caption"]
        return {
            "key": self._files.key(row["image"]),
            "captions": [caption],
            "boxes": box_array(row["boxes"]),
            "spans": row["spans"],
            "names": [" ".join(caption[i:j] for i, j in spans) for spans in row["spans"]],
            "crowd": np.zeros(len(row["boxes"]), np.bool_),
        }


def _spans(region: dict[str, Any], caption: str) -> list[Span]:
    """Spans of a region in its caption."""
    phrase = region.get("phrase")
    if isinstance(phrase, str) and phrase.strip():
        found = [
            match.span() for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption)
        ]
        if len(found) != 1:
            raise UserError(
                f"the phrase {phrase!r} occurs {len(found)} times in the caption, expected once: "
                "give spans"
            )
        return [list(found[0])]
    spans = region.get("spans")
    if not isinstance(spans, list) or not spans:
        raise UserError(f"expected a region with a phrase or spans, found {sorted(region)}")
    for span in spans:
        numbers = isinstance(span, list) and len(span) == 2 and all(type(i) is int for i in span)
        if not numbers or not 0 <= span[0] < span[1] <= len(caption):
            raise UserError(
                f"the span {span!r} is not inside the caption of {len(caption)} characters"
            )
    return spans
