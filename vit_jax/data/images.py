"""Decoding of images, and encoded images that are decoded where they are needed."""

import dataclasses
import functools
import io
import math
import os

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from vit_jax.data import jpeg
from vit_jax.errors import UserError
from vit_jax.paths import as_path, is_url

Pixels = UInt8[np.ndarray, "_ _ _"]
"""A decoded image: uint8 (H, W, 3), or (H, W, 4) with straight alpha."""


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An encoded image, so that a crop can skip decoding the rest.

    Attributes:
        data: content of the image file.
        where: name of the image in error messages, as its path, or a shard and its key.
    """

    data: bytes
    where: str = ""

    def decode(self) -> Pixels:
        """Decodes the whole image, see `read_image`."""
        return read_image(self.data, self.where)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width after EXIF orientation, px, read from the file's header.

        Raises:
            UserError: the data is no image.
        """
        if (header := self._jpeg_header) is not None:
            return header.height, header.width
        try:
            with Image.open(io.BytesIO(self.data)) as image:
                transposed = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return image.size if transposed else image.size[::-1]
        except Exception as error:  # Pillow's plugins raise any class on damaged files
            raise UserError(f"cannot read the image {self.where}: {error}") from error

    @functools.cached_property
    def _jpeg_header(self) -> jpeg.Header | None:
        """Header of a JPEG; None for CMYK, EXIF that may rotate it, and other formats."""
        header = jpeg.read_header(self.data)
        # Pillow is slower, but reads those.
        return header if header and not header.has_exif and header.components in (1, 3) else None

    def decode_reduced(self, scale: float, rows: int) -> tuple[Pixels, int]:
        """Decodes the upper rows of a JPEG at 1/2, 1/4 or 1/8 of its size, where that suffices.

        Meant for training: libjpeg-turbo's fast arithmetic is slightly less exact.

        Args:
            scale: smallest fraction of the image's size that suffices.
            rows: number of rows that are needed, from the top, at full size.

        Returns:
            The image, with ceil(width / factor) columns and at least ceil(rows / factor) rows, and
            the factor: 1, 2, 4 or 8.

        Raises:
            UserError: see `read_image`.
        """
        if (header := self._jpeg_header) is None:
            return self.decode(), 1
        factor = 2 ** min(3, max(0, math.floor(-math.log2(scale))))
        try:
            pixels = jpeg.decode_rows(self.data, header, min(rows, header.height), factor)
        except ValueError:  # Pillow decides whether the damage is fatal.
            return self.decode(), 1
        return pixels, factor


def read_image(source: str | os.PathLike[str] | bytes, where: str = "") -> Pixels:
    """Decodes an image of any mode that Pillow reads and applies its EXIF orientation.

    Args:
        source: path, local or in a bucket, or content of an image file. Of an animation, the first
            frame is decoded.
        where: name of the image in error messages; by default the path.

    Returns:
        uint8 (H, W, 3), or (H, W, 4) if the image has transparency; not writeable.

    Raises:
        UserError: the file is absent, truncated or no image.
    """
    if not where:
        where = f"in {len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        if not isinstance(source, bytes) and is_url(source):
            source = as_path(source).read_bytes()
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            pixels = np.asarray(_to_rgb_or_rgba(ImageOps.exif_transpose(image)))
    except FileNotFoundError:
        raise UserError(f"no image at {where}") from None
    except Exception as error:  # Pillow's plugins raise any class on damaged files
        raise UserError(f"cannot read the image {where}: {error}") from error
    pixels.flags.writeable = False
    return pixels


def _to_rgb_or_rgba(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel, which convert() would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise UserError("floating-point pixels have no defined range; save the image with 8 bits")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
