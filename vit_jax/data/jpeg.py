"""Headers of JPEG files, and decoding of their upper rows at a reduced scale (libjpeg-turbo)."""

import dataclasses
import math

import numpy as np
import simplejpeg
from jaxtyping import UInt8

_START, _START_OF_SCAN, _APP1 = b"\xff\xd8\xff", 0xDA, 0xE1
_BASELINE, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_END = b"\xff\xd9"


@dataclasses.dataclass(frozen=True)
class Header:
    """Content of a JPEG file before its first scan.

    Attributes:
        height: px.
        width: px.
        components: 1 for grey, 3 for colour, 4 for CMYK.
        has_exif: whether there is an EXIF segment, which may hold an orientation.
        progressive: whether each scan holds a part of every row.
        height_at: position of the two bytes of the height.
    """

    height: int
    width: int
    components: int
    has_exif: bool
    progressive: bool
    height_at: int


def read_header(data: bytes) -> Header | None:
    """Reads the header of a baseline or progressive JPEG; None for any other or damaged file."""
    if not data.startswith(_START):
        return None
    at, has_exif = 2, False
    while at + 10 <= len(data) and data[at] == 0xFF and data[at + 1] != _START_OF_SCAN:
        marker = data[at + 1]
        if marker in _BASELINE or marker == _PROGRESSIVE:
            height, width = (int.from_bytes(data[i : i + 2]) for i in (at + 5, at + 7))
            if height == 0 or width == 0:
                return None
            # The EXIF standard demands that its segment comes before the frame.
            return Header(height, width, data[at + 9], has_exif, marker == _PROGRESSIVE, at + 5)
        has_exif |= marker == _APP1 and data.startswith(b"Exif\0", at + 4)
        # A marker may have several leading 0xFF.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def decode_rows(
    data: bytes, header: Header, rows: int, factor: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes the upper rows at 1 / `factor` of the size, with fast, slightly rougher arithmetic.

    A smaller height in the header makes libjpeg stop after the last row. Progressive files are
    decoded whole, and so are files without an end marker, whose damage libjpeg has to judge.

    Args:
        data: content of the file.
        header: header of the file.
        rows: number of rows that are needed, at full size.
        factor: 1, 2, 4 or 8.

    Returns:
        An image of ceil(width / factor) columns and at least ceil(rows / factor) rows.

    Raises:
        ValueError: libjpeg found damage.
    """
    cut = rows < header.height and not header.progressive and data.endswith(_END)
    if cut:
        at = header.height_at
        data = b"".join((data[:at], rows.to_bytes(2), data[at + 2 :]))
    return simplejpeg.decode_jpeg(
        data,
        fastdct=True,
        fastupsample=True,
        min_factor=factor,
        min_height=math.ceil((rows if cut else header.height) / factor),
        min_width=math.ceil(header.width / factor),
        strict=not cut,  # the rest of the scan would count as an error
    )
