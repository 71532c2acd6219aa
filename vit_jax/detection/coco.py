"""Detections in COCO's JSON, which the source `coco:` reads as pseudo-labels."""

import json
from collections.abc import Sequence
from typing import Any

from vit_jax.atomic_files import write_text
from vit_jax.detection.selection import Detections
from vit_jax.paths import StrPath


def write_coco(path: StrPath, found: Sequence[Detections], classes: Sequence[str]) -> None:
    """Writes images, categories, and annotations with their scores, atomically.

    Boxes are clipped to their image; a box outside of it is left out.

    Args:
        path: file to write.
        found: detections of images; their keys become the file names.
        classes: names of the classes, all different.
    """
    categories = {name: number for number, name in enumerate(classes, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, each in enumerate(found, start=1):
        images.append(
            {"id": number, "file_name": each.key, "height": each.height, "width": each.width}
        )
        limits = [each.width, each.height] * 2
        for box, score, name in zip(each.boxes, each.scores, each.names, strict=True):
            x0, y0, x1, y1 = box.clip(0, limits).tolist()
            if x1 > x0 and y1 > y0:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": categories[name],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                        "score": float(score),
                    }
                )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    write_text(path, json.dumps(content) + "\n")
