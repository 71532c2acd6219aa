"""Pictures as sources hand them out: encoded bytes that are decoded where they are needed."""

import dataclasses
import io
import os

import numpy as np
from PIL import Image, ImageOps

from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A picture that is not decoded yet, so that a crop need not decode the rest.

    Attributes:
        data: the file's bytes.
        where: what names it in messages, as a path or a shard and its key.
    """

    data: bytes
    where: str = ""

    def decode(self) -> np.ndarray:
        """The whole picture, see `read_image`."""
        return read_image(self.data, self.where)


def read_image(source: str | os.PathLike[str] | bytes, where: str = "") -> np.ndarray:
    """Decodes a picture: palette, grey, 16-bit grey, alpha, CMYK; EXIF orientation is applied.

    Args:
      source: a path, or the bytes of an encoded picture. Of an animation the first frame is read.
      where: what names the picture in messages; the path, if none is given.

    Returns:
      uint8 (H, W, 3), or (H, W, 4) if the picture has transparency; not writeable.

    Raises:
      UserError: no such file, not a picture, or a truncated one; the message names the path.
    """
    if not where:
        where = f"{len(source)} bytes of memory" if isinstance(source, bytes) else os.fspath(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            pixels = np.asarray(_to_rgb_or_rgba(ImageOps.exif_transpose(picture)))
    except FileNotFoundError:
        raise UserError(f"no picture {where}") from None
    # Pillow's plugins raise these, SyntaxError included, on damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the picture {where}: {error}") from error
    pixels.flags.writeable = False
    return pixels


def _to_rgb_or_rgba(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel: convert() would clip at 255.
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode == "F":
        raise UserError("floating-point pixels have no fixed white; save it with 8 bits")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
