"""Contact sheet of the scenes of emoji, with boxes, names and outlines of the masks.

python docs/figures/emoji_scenes.py
"""

import pathlib

import cv2
import numpy as np
from PIL import Image, ImageDraw

from vit_jax.data.sources import open_source

ROWS = ("train", "train", "heldout_names", "heldout_artist")
COLUMNS = 5
SCALE = 2  # pixels of the sheet per pixel of a scene
COLORS = ("red", "blue", "darkgreen", "purple", "saddlebrown", "black")


def panel(example: dict) -> np.ndarray:
    """One scene, enlarged, with its annotations."""
    side = example["image"].shape[0] * SCALE
    image = Image.fromarray(example["image"]).resize((side, side), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    things = zip(example["boxes"], example["names"], example["segmentation"], strict=True)
    for color, (box, name, mask) in zip(COLORS, things, strict=False):
        mask = cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        for outline in outlines:
            draw.line([tuple(point[0]) for point in outline], fill="white")
        x0, y0, x1, y1 = (float(value) * SCALE for value in box)
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=color)
        left = min(x0 + 2, side - 1 - draw.textlength(name))
        where = (max(left, 1), y0 - 10 if y0 >= 11 else min(y1, side - 11))
        draw.rectangle(draw.textbbox(where, name), fill="white")
        draw.text(where, name, fill=color)
    return np.asarray(image)


def main() -> None:
    """Writes `emoji_scenes.webp` beside this file."""
    rows = []
    for number, split in enumerate(ROWS):
        source = open_source(f"emoji_scenes:{split}?size=112")
        first = number * COLUMNS
        rows.append(np.hstack([panel(source[first + i]) for i in range(COLUMNS)]))
    path = pathlib.Path(__file__).with_suffix(".webp")
    Image.fromarray(np.vstack(rows)).save(path, quality=80, method=6)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
