"""Mutated annotation files of boxes, read as the training of a detector reads them."""

import collections
import functools
import json
import pathlib
import random

import numpy as np

from benchmarks.fuzz_data import image
from benchmarks.mutation import check, mutate
from vit_jax.data.augment import parse_box_augmentation
from vit_jax.data.broken import LEFT_OUT
from vit_jax.data.detection import FIELDS, DetectionConfig, detection_transform
from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import open_source
from vit_jax.data.tokenizers import Tokenizer, open_tokenizer
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

IDS = (0, 1, 2, 1.0, "1", "x", None, True, 10**30, [1], float("nan"))
NUMBERS = (0, 1, 3.5, -2, 900, 1e400, float("nan"), "3", None, True)
NAMES = ("cat", "dog", "cat ", "", "fire_truck", "x" * 500, None, 3)
AUGMENTS = (
    "",
    "flip|random_crop|mosaic",
    "scale_jitter",
    "mosaic((0.0, 0.0, 1.0))|color_jitter(0.3)",
)


def fuzz_coco(folder: pathlib.Path, rng: random.Random) -> str:
    """A COCO file with values of many types, sometimes mutated; returns its spec."""
    images = []
    for i in range(4):
        data = image(rng)
        (folder / f"{i}.img").write_bytes(data)
        height, width = EncodedImage(data).shape
        odd = rng.random() < 0.03
        images.append(
            {
                "id": rng.choice(IDS) if odd else i,
                "file_name": rng.choice((f"{i}.img", "absent.jpg", "..", None, "\udc80")) if odd
                else f"{i}.img",
                "height": rng.choice(NUMBERS) if odd else height,
                "width": width,
                "neg_category_ids": rng.choice(([], [1, 2], [99], None, "1")),
            }
        )  # fmt: skip
    categories = [
        {"id": rng.choice(IDS) if rng.random() < 0.03 else i, "name": rng.choice(NAMES[:3])}
        for i in range(3)
    ]
    annotations = []
    for i in range(rng.randrange(20)):
        box = [rng.choice(NUMBERS) if rng.random() < 0.1 else rng.uniform(0, 9) for _ in range(4)]
        annotations.append(
            {
                "id": rng.choice((i, 0, None)),
                "image_id": rng.choice(IDS) if rng.random() < 0.1 else rng.randrange(4),
                "category_id": rng.choice(IDS) if rng.random() < 0.1 else rng.randrange(3),
                "bbox": box if rng.random() < 0.95 else rng.choice(([], None, "1,2,3,4", [box])),
                "iscrowd": rng.choice((0, 1, None)),
                "area": rng.choice(NUMBERS),
                "segmentation": rng.choice(
                    (
                        *(None, [[1, 2, 3, 4, 5, 6]], {"size": [1, 1]}, [[1, 2]], "x", [[[1, 2]]]),
                        {"size": [images[0]["height"], images[0]["width"]], "counts": [2, 2]},
                        {"size": [images[1]["height"], images[1]["width"]], "counts": "0P1\0z"},
                        [[rng.choice(NUMBERS) for _ in range(6)]],
                    )
                ),
            }
        )
    content = {"images": images, "annotations": annotations, "categories": categories}
    if rng.random() < 0.05:
        content[rng.choice(sorted(content))] = rng.choice((None, {}, [], [3], "x"))
    data = json.dumps(content).encode()
    (folder / "boxes.json").write_bytes(mutate(data, rng) if rng.random() < 0.3 else data)
    options = ("", "", "", f"?images={folder}", "?images=/absent")
    return f"coco:{folder}/boxes.json{rng.choice(options)}"


def fuzz_grounding(folder: pathlib.Path, rng: random.Random) -> str:
    """JSON lines with captions and boxes, sometimes mutated; returns its spec."""
    lines = []
    for i in range(5):
        (folder / f"{i}.img").write_bytes(image(rng))
        regions = [
            {
                "box": [rng.uniform(0, 4), 0, rng.uniform(3, 9), rng.choice((5, 7, *NUMBERS))],
                **rng.choice(
                    (
                        {"phrase": "a cat"},
                        {"spans": [[0, 5]]},
                        {"spans": [[3, 99]]},
                        {},
                        {"phrase": 3},
                    )
                ),
            }
            for _ in range(rng.randrange(4))
        ]
        caption = rng.choice(("a cat and a dog",) * 4 + NAMES)
        lines.append({"image": f"{i}.img", "caption": caption, "regions": regions})
    data = "\n".join(map(json.dumps, lines)).encode()
    (folder / "g.jsonl").write_bytes(mutate(data, rng) if rng.random() < 0.5 else data)
    return f"grounding:{folder}/g.jsonl"


def fuzz_referring(folder: pathlib.Path, rng: random.Random) -> str:
    """JSON lines with phrases and masks of all kinds, sometimes mutated; returns its spec."""
    lines = []
    for i in range(5):
        data = image(rng)
        (folder / f"{i}.img").write_bytes(data)
        (folder / f"{i}_mask.img").write_bytes(image(rng))
        height, width = EncodedImage(data).shape
        polygon = [rng.choice((rng.uniform(-3, 9), *NUMBERS[:3])) for _ in range(8)]
        runs = {"size": [height, width], "counts": [2, 3, height * width - 5]}
        lines.append(
            {
                "image": rng.choice((f"{i}.img", "absent.jpg", 3)) if i == 0 else f"{i}.img",
                "phrase": rng.choice(("a cat", ["a cat", "left one"], "", None, 3)),
                **rng.choice(
                    (
                        {"segmentation": [polygon]},
                        {"segmentation": [[rng.choice(NUMBERS) for _ in range(6)]]},
                        {"segmentation": runs},
                        {"segmentation": runs | {"counts": rng.choice(("0P1", [-1], None))}},
                        {"segmentation": runs | {"size": rng.choice(([10**6] * 2, [1], None))}},
                        {"mask": f"{i}_mask.img"},
                        {"mask": "absent.png"},
                        {},
                    )
                ),
                **rng.choice(({}, {}, {"box": [0, 0, 5, rng.choice((5, *NUMBERS))]})),
            }
        )
    data = "\n".join(map(json.dumps, lines)).encode()
    (folder / "r.jsonl").write_bytes(mutate(data, rng) if rng.random() < 0.3 else data)
    return f"referring:{folder}/r.jsonl"


@functools.cache
def tokenizer() -> Tokenizer:
    """A tokenizer."""
    return open_tokenizer("clip", vocab_size=49408, context_length=8)


def read(spec: str, rng: random.Random) -> collections.Counter[str]:
    """Opens a source and makes a training example of each of its examples."""
    source = open_source(spec)
    resize = rng.choice(("squash", "corner"))
    # OWLv2 blurs a square of the longer side: small inputs of long images would take seconds.
    size = (240, 320) if resize == "corner" else (24, 32)
    inputs = ImageInputs(size=size, resize=resize, interpolation="bilinear")
    transform = detection_transform(
        source,
        parse_box_augmentation(rng.choice(AUGMENTS), inputs),
        tokenizer(),
        config=DetectionConfig(max_boxes=4, max_queries=5, negatives=2),
        fields=rng.choice((FIELDS, FIELDS if "grounding:" in spec else (*FIELDS, "masks"))),
    )
    found: collections.Counter[str] = collections.Counter()
    for row in range(len(source)):
        try:
            example = transform(source[row], np.random.default_rng(row))
        except (UserError, OSError) as error:
            check(error)
            found["counted"] += 1
            continue
        example.pop(LEFT_OUT)
        boxes, valid = example["boxes"], example["labels"] >= 0
        assert (boxes[valid, 2:] > 0).all(), boxes
        assert (boxes >= 0).all(), boxes
        assert (boxes <= 1).all(), boxes
        assert example["tokens"][example["labels"][valid], 0].all()
        assert "masks" not in example or (example["masks"].any(axis=(1, 2)) == valid).all()
        found["example"] += 1
    return found


SUBJECTS = {
    "coco": lambda folder, rng: read(fuzz_coco(folder, rng), rng),
    "grounding": lambda folder, rng: read(fuzz_grounding(folder, rng), rng),
    "referring": lambda folder, rng: read(fuzz_referring(folder, rng), rng),
}
