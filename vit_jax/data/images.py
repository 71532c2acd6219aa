"""Decoding of images, and encoded images that are decoded where they are needed."""

import contextlib
import dataclasses
import functools
import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from vit_jax.data import jpeg
from vit_jax.errors import UserError
from vit_jax.paths import as_path, is_url

logger = logging.getLogger(__name__)

Pixels = UInt8[np.ndarray, "_ _ _"]
"""A decoded image: uint8 (H, W, 3), or (H, W, 4) with straight alpha."""

MAX_PIXELS = 178_956_970
"""Default of the largest number of pixels per image, from which Pillow refuses images."""

_LARGE = MAX_PIXELS // 2  # number of pixels from which Pillow warns
_large_logged = threading.Event()
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # see _check_size


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An encoded image, so that a crop can skip decoding the rest.

    Attributes:
        data: content of the image file.
        where: name of the image in error messages, as its path, or a shard and its key.
        max_pixels: see `read_image`.
    """

    data: bytes
    where: str = ""
    max_pixels: int = MAX_PIXELS

    def decode(self) -> Pixels:
        """Decodes the whole image, see `read_image`."""
        return read_image(self.data, self.where, max_pixels=self.max_pixels)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width after EXIF orientation, px, read from the file's header.

        Raises:
            UserError: the data is no image, or it has more than `max_pixels`.
        """
        with _explained(self.where):
            if (header := self._jpeg_header) is not None:
                _check_size(header.height, header.width, self.where, self.max_pixels)
                return header.height, header.width
            with _open(io.BytesIO(self.data), self.where, self.max_pixels) as image:
                transposed = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                # Newer versions of Pillow apply the orientation of a TIFF to its size themselves.
                if isinstance(image, TiffImagePlugin.TiffImageFile):
                    size = (
                        image.tag_v2[ExifTags.Base.ImageWidth],
                        image.tag_v2[ExifTags.Base.ImageLength],
                    )
                    transposed = transposed and image.size == size
                return image.size if transposed else image.size[::-1]

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
        with _explained(self.where):
            _check_size(header.height, header.width, self.where, self.max_pixels)
        factor = 2 ** min(3, max(0, math.floor(-math.log2(scale))))
        try:
            pixels = jpeg.decode_rows(self.data, header, min(rows, header.height), factor)
        except ValueError:  # Pillow decides whether the damage is fatal.
            return self.decode(), 1
        return pixels, factor


def read_image(source: Any, where: str = "", *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Reads an image of any kind: the only way in which images enter.

    The EXIF orientation is applied. 16 bits are reduced to the upper 8, as Pillow does for colours.

    Args:
        source: one of
            a path, local or in a bucket, the content of an image file, or a file that is open in
            binary mode, of any format and mode that Pillow reads, and of an animation its first
            frame;
            a PIL image;
            an `EncodedImage`;
            an array (H, W) or (H, W, C) of grey (C = 1) or RGB (3), with alpha (2 or 4): uint8,
            uint16, bool, or floating point in [0, 1].
        where: name of the image in error messages; by default the path.
        max_pixels: largest number of pixels; 0 for any.

    Returns:
        uint8 (H, W, 3), or (H, W, 4) if the image has transparency. It may share memory with
        `source`, and may not be writeable.

    Raises:
        UserError: the file is absent, truncated or no image, there are too many pixels, or the
            values have no defined range.
    """
    if isinstance(source, EncodedImage):
        return dataclasses.replace(source, max_pixels=max_pixels).decode()
    with _explained(where := where or _name(source)):
        if isinstance(source, Image.Image):
            _check_size(source.height, source.width, where, max_pixels)
            return _decode(source)
        if isinstance(source, bytes | bytearray | memoryview):
            source = io.BytesIO(source)
        if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
            with _open(source, where, max_pixels) as image:
                return _decode(image)
        if hasattr(source, "__array__"):
            return _from_array(np.asarray(source))
        raise UserError(
            "expected a path, the content of an image file, a file open in binary mode, a PIL "
            f"image or an array, found {type(source).__name__}"
        )


def read_levels(image: EncodedImage) -> Int[np.ndarray, "height width"]:
    """Reads an image whose pixels are numbers, as labels, not colors.

    Args:
        image: an image of one channel: positions in a palette, grey levels of any depth, or bits.

    Raises:
        UserError: the image cannot be read, or it has colors.
    """
    with (
        _explained(image.where),
        _open(io.BytesIO(image.data), image.where, image.max_pixels) as opened,
    ):
        if opened.mode not in ("1", "L", "P") and not opened.mode.startswith("I"):
            raise UserError(
                f"expected one channel, a palette or grey levels; found the mode {opened.mode}"
            )
        return np.asarray(opened).astype(np.int32)


def image_content(source: Any) -> bytes:
    """Bytes that are equal only for equal images: the encoded ones, or shape and pixels.

    Args:
        source: image of any kind, see `read_image`.
    """
    if isinstance(source, EncodedImage):
        return source.data
    pixels = read_image(source)
    return repr(pixels.shape).encode() + pixels.tobytes()


def check_max_pixels(max_pixels: int, key: str) -> None:
    """Refuses a negative limit.

    Args:
        max_pixels: largest number of pixels; 0 for any.
        key: key of the limit, for the message.

    Raises:
        UserError: the limit is negative.
    """
    if max_pixels < 0:
        raise UserError(f"{key}={max_pixels}: expected a number of pixels, or 0 for any size")


def _name(source: Any) -> str:
    """Name of an image in error messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"in {len(source)} bytes"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "filename", "") or getattr(source, "name", "")
    return str(name) or f"of type {type(source).__name__}"


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Adds the name of the image to errors."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"no image at {where}") from None
    except Exception as error:  # Pillow's plugins raise any class on damaged files
        raise UserError(f"cannot read the image {where}: {error}") from error


@contextlib.contextmanager
def _open(source: Any, where: str, max_pixels: int) -> Iterator[Image.Image]:
    """Opens a file and checks the size in its header."""
    if isinstance(source, str | os.PathLike):
        path = as_path(source)
        source = io.BytesIO(path.read_bytes()) if is_url(path) else path
    if isinstance(source, io.TextIOBase):
        raise UserError("the file is open in text mode, expected binary mode: open(path, 'rb')")
    # Pillow's limit belongs to the process: it is raised where it forbids that of the caller.
    pillows = Image.MAX_IMAGE_PIXELS
    if pillows is not None and not 0 < max_pixels <= pillows:
        Image.MAX_IMAGE_PIXELS = max_pixels or None
    try:
        with Image.open(source) as image:
            _check_size(image.height, image.width, where, max_pixels)
            yield image
    except UnidentifiedImageError as error:  # its message has the address of an object
        raise UserError("no image of a format that can be read") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"more than max_image_pixels={max_pixels}: {error}") from error


def _check_size(height: int, width: int, where: str, max_pixels: int) -> None:
    """Refuses images that are too large, and logs the first large one."""
    if max_pixels and height * width > max_pixels:
        raise UserError(f"{width} x {height} px are more than max_image_pixels={max_pixels}")
    if height * width > _LARGE and not _large_logged.is_set():
        _large_logged.set()
        logger.warning(
            "Large image %s: %d x %d px, %d MiB when decoded. Further ones are not logged; "
            "max_image_pixels=%d is the limit.",
            where, width, height, height * width * 3 >> 20, max_pixels,
        )  # fmt: skip


def _decode(image: Image.Image) -> Pixels:
    """Pixels of an image of any mode."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError("floating-point pixels have no defined range; save the image with 8 bits")
    if image.mode.startswith("I"):  # convert() would clip these modes at 255
        return _from_array(_deep_values(image))
    pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    pixels.flags.writeable = False
    return pixels


def _deep_values(image: Image.Image) -> np.ndarray:
    """Grey levels of more than 8 bits, with alpha where one level is transparent."""
    values = np.asarray(image)
    if image.mode == "I":
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UserError(
                f"32-bit pixels from {values.min()} to {values.max()} have no defined range; save "
                "the image with 8 or 16 bits"
            )
        values = values.astype(np.uint16)
    if isinstance(clear := image.info.get("transparency"), int):
        return np.stack([values, np.where(values == clear, 0, 0xFFFF).astype(np.uint16)], axis=-1)
    return values


def _from_array(array: np.ndarray) -> Pixels:
    """Pixels of an array of any of the types and shapes of `read_image`."""
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise UserError(
            f"an array of shape {array.shape}, expected (height, width) or (height, width, "
            "channels) with 1 to 4 channels"
        )
    pixels = _as_uint8(pixels)
    if pixels.shape[-1] <= 2:  # grey
        return np.take(pixels, [0, 0, 0, 1][: 2 + pixels.shape[-1]], axis=-1)
    return pixels


def _as_uint8(array: np.ndarray) -> UInt8[np.ndarray, "height width channels"]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.uint16):  # of either byte order
        return (array >> 8).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"pixels of the type {array.dtype}, expected uint8, uint16, bool, or floating point "
            "in [0, 1]"
        )
    if not (array.min() >= 0 and array.max() <= 1):  # also NaN
        raise UserError(
            f"floating-point pixels from {array.min():g} to {array.max():g}, expected [0, 1]; for "
            "levels up to 255, convert them to uint8"
        )
    return np.rint(array.astype(np.promote_types(array.dtype, np.float32)) * 255).astype(np.uint8)
