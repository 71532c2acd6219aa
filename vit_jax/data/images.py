"""Images as sources hand them out: encoded bytes that are decoded where they are needed."""

import dataclasses
import functools
import io
import math
import os

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vit_jax.data import jpeg
from vit_jax.errors import UserError

Picture = np.ndarray
"""Decoded: uint8 (H, W, 3), or (H, W, 4) with straight alpha."""

# What Pillow's plugins raise on damaged files, SyntaxError included.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An image that is not decoded yet, so that a crop need not decode the rest.

    Attributes:
        data: the file's bytes.
        where: what names it in messages, as a path or a shard and its key.
    """

    data: bytes
    where: str = ""

    def decode(self) -> Picture:
        """The whole image, see `read_image`."""
        return read_image(self.data, self.where)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px, upright; from the file's head alone.

        Raises:
          UserError: not an image.
        """
        if (head := self._jpeg) is not None:
            return head.height, head.width
        try:
            with Image.open(io.BytesIO(self.data)) as picture:
                turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return picture.size if turned else picture.size[::-1]
        except _DAMAGED as error:
            raise UserError(f"cannot read the picture {self.where}: {error}") from error

    @functools.cached_property
    def _jpeg(self) -> jpeg.Head | None:
        """The head of a JPEG; None for CMYK, EXIF that may turn it, and other formats."""
        head = jpeg.read_head(self.data)
        # Pillow is slower, but reads them.
        return head if head and not head.has_exif and head.components in (1, 3) else None

    def decode_reduced(self, scale: float, rows: int) -> tuple[Picture, int]:
        """The image; a JPEG at 1/2, 1/4 or 1/8 of its size and down to a row, if that will do.

        For training: the pixels are those of libjpeg-turbo's faster, slightly rougher arithmetic.

        Args:
          scale: the smallest fraction of the size that will do.
          rows: how many, from above and at full size, are needed.

        Returns:
          The image as `decode`, all columns, ceil(width / factor), and ceil(rows / factor) rows
          or more; and the factor, 1, 2, 4 or 8.

        Raises:
          UserError: as `read_image`.
        """
        if (head := self._jpeg) is None:
            return self.decode(), 1
        factor = 2 ** min(3, max(0, math.floor(-math.log2(scale))))
        try:
            return jpeg.decode_rows(self.data, head, min(rows, head.height), factor), factor
        except ValueError:  # Pillow decides what is too damaged, and says so.
            return self.decode(), 1


def read_image(source: str | os.PathLike[str] | bytes, where: str = "") -> Picture:
    """Decodes an image: palette, grey, 16-bit grey, alpha, CMYK; EXIF orientation is applied.

    Args:
      source: a path, or the bytes of an encoded image. Of an animation the first frame is read.
      where: what names the image in messages; the path, if none is given.

    Returns:
      uint8 (H, W, 3), or (H, W, 4) if the image has transparency; not writeable.

    Raises:
      UserError: no such file, not an image, or a truncated one; the message names the path.
    """
    if not where:
        where = f"{len(source)} bytes of memory" if isinstance(source, bytes) else os.fspath(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            pixels = np.asarray(_to_rgb_or_rgba(ImageOps.exif_transpose(picture)))
    except FileNotFoundError:
        raise UserError(f"no picture {where}") from None
    except _DAMAGED as error:
        raise UserError(f"cannot read the picture {where}: {error}") from error
    pixels.flags.writeable = False
    return pixels


def _to_rgb_or_rgba(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel: convert() would clip at 255.
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode == "F":
        raise UserError("floating-point pixels have no fixed white; save it with 8 bits")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
