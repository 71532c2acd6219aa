"""A contact sheet: small images with their captions, in a grid."""

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SIDE = 144  # px of an image
_MARGIN, _LINE, _LINES = 8, 13, 2
_FONT_SIZE = 11


def contact_sheet(cells: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Draws images in a grid that is about square.

    Args:
        cells: image and text of each cell. Images are scaled down to 144 px, texts are shortened to
            two lines.

    Returns:
        An RGB image.
    """
    columns = max(1, math.ceil(math.sqrt(len(cells))))
    width, height = SIDE + _MARGIN, SIDE + _LINES * _LINE + _MARGIN
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new(
        "RGB", (columns * width + _MARGIN, max(1, rows) * height + _MARGIN), (236, 236, 236)
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for i, (image, text) in enumerate(cells):
        x, y = _MARGIN + i % columns * width, _MARGIN + i // columns * height
        small = image.copy()
        small.thumbnail((SIDE, SIDE))
        sheet.paste(small, (x + (SIDE - small.width) // 2, y + (SIDE - small.height) // 2))
        lines = textwrap.wrap(text, SIDE // 6, max_lines=_LINES, placeholder="...")
        draw.text((x, y + SIDE), "\n".join(lines), fill="black", font=font, spacing=1)
    return sheet
