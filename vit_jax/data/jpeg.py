"""JPEG files through libjpeg-turbo: their heads, and their upper rows at a reduced scale."""

import dataclasses
import math

import numpy as np
import simplejpeg

_START, _START_OF_SCAN, _APP1 = b"\xff\xd8\xff", 0xDA, 0xE1
_BASELINE, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_END = b"\xff\xd9"


@dataclasses.dataclass(frozen=True)
class Head:
    """What stands before the first scan.

    Attributes:
        height: px.
        width: px.
        components: 1 for grey, 3 for colours, 4 for CMYK.
        has_exif: there may be an orientation.
        progressive: a scan holds a part of every row.
        height_at: where the two bytes of the height are.
    """

    height: int
    width: int
    components: int
    has_exif: bool
    progressive: bool
    height_at: int


def read_head(data: bytes) -> Head | None:
    """The head of a JPEG; None for other formats, for rarer kinds of JPEG and for damaged ones."""
    if not data.startswith(_START):
        return None
    at, has_exif = 2, False
    while at + 10 <= len(data) and data[at] == 0xFF and data[at + 1] != _START_OF_SCAN:
        marker = data[at + 1]
        if marker in _BASELINE or marker == _PROGRESSIVE:
            height, width = (int.from_bytes(data[i : i + 2]) for i in (at + 5, at + 7))
            if height == 0 or width == 0:
                return None
            # EXIF after the frame is against its standard, and unknown in the wild.
            return Head(height, width, data[at + 9], has_exif, marker == _PROGRESSIVE, at + 5)
        has_exif |= marker == _APP1 and data.startswith(b"Exif\0", at + 4)
        # A marker may be led by several 0xFF.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def decode_rows(data: bytes, head: Head, rows: int, factor: int) -> np.ndarray:
    """The uppermost rows at 1 / `factor` of the size, in faster and slightly rougher arithmetic.

    The rows below are not decoded, since libjpeg is told a smaller height. Of a progressive file
    all rows are decoded, and of one without its end, which libjpeg has to judge.

    Args:
      data: the file's bytes.
      head: of it.
      rows: of the whole size, that are needed.
      factor: 1, 2, 4 or 8.

    Returns:
      uint8 (H, W, 3), W = ceil(width / factor), H >= ceil(rows / factor).

    Raises:
      ValueError: libjpeg found damage.
    """
    cut = rows < head.height and not head.progressive and data.endswith(_END)
    if cut:
        data = b"".join((data[: head.height_at], rows.to_bytes(2), data[head.height_at + 2 :]))
    return simplejpeg.decode_jpeg(
        data,
        fastdct=True,
        fastupsample=True,
        min_factor=factor,
        min_height=math.ceil((rows if cut else head.height) / factor),
        min_width=math.ceil(head.width / factor),
        strict=not cut,  # What is left of the scan is no error then.
    )
