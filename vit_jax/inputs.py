"""From an image of any size to a model's input: the one preprocessing of the library.

`ImageInputs` belongs to a model. Training, evaluation, teachers and `create_model` all use it.
Augmentation comes before it.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax.errors import check_name

RESIZES = ("crop", "squash", "pad")
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
Channels = tuple[float, float, float]
HALF: Channels = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """How an image becomes a model's input.

    Pixels travel to the devices as uint8, a quarter of the bytes of float32, and flat, since a TPU
    pads a last dimension of 3 to 128. `normalize` is the last step, on the devices.

    Attributes:
        size: height and width, px; (0, 0) until a `ModelSpec` sets its architecture's.
        resize: "crop" (shortest edge to size / crop_fraction, then the centre, as torchvision),
            "squash" (ignores the aspect ratio) or "pad" (fits the image into the size, on white).
        crop_fraction: fraction of the resized shortest edge that the crop keeps, for "crop".
        interpolation: "bicubic" or "bilinear", with antialias.
        mean: subtracted from values in [0, 1], per channel.
        std: divisor, per channel.
    """

    size: tuple[int, int] = (0, 0)
    resize: str = "crop"
    crop_fraction: float = 1.0
    interpolation: str = "bicubic"
    mean: Channels = HALF
    std: Channels = HALF

    def __post_init__(self) -> None:
        check_name(self.resize, RESIZES, "inputs.resize,")
        check_name(self.interpolation, INTERPOLATIONS, "inputs.interpolation,")

    def __call__(self, image: Any) -> np.ndarray:
        """Resizes and crops an image.

        Args:
            image: uint8 (H, W, 3), or (H, W, 4), whose alpha is composited on white; or a
                `data.images.EncodedImage`.

        Returns:
            uint8 (height, width, 3).
        """
        if not isinstance(image, np.ndarray):
            image = image.decode()
        pil = Image.fromarray(composite(image))
        return np.asarray(getattr(self, f"_{self.resize}")(pil))

    def pack(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (height, width, 3) as they travel: uint8 (height * width * 3,)."""
        return pixels.reshape(-1)

    @property
    def packed_size(self) -> int:
        """Values per packed image."""
        return self.size[0] * self.size[1] * 3

    def normalize(self, pixels: jax.Array) -> jax.Array:
        """Packed uint8 pixels (B, height * width * 3), or (B, H, W, 3), to the model's input.

        Returns:
            ((x / 255) - mean) / std, float32 (B, H, W, 3).
        """
        if pixels.ndim == 2:
            pixels = pixels.reshape(-1, *self.size, 3)
        values = pixels.astype(jnp.float32) / 255.0
        return (values - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)

    def renormalize(self, images: jax.Array, inputs: "ImageInputs") -> jax.Array:
        """Images (B, H, W, 3) normalised for another model, normalised for this one.

        Args:
            images: input of the other model.
            inputs: of the other model.
        """
        scale = [theirs / ours for ours, theirs in zip(self.std, inputs.std, strict=True)]
        shift = [
            (theirs - ours) / std
            for ours, theirs, std in zip(self.mean, inputs.mean, self.std, strict=True)
        ]
        return images * jnp.asarray(scale) + jnp.asarray(shift)

    def _squash(self, image: Image.Image) -> Image.Image:
        return self._resized(image, self.size)

    def _crop(self, image: Image.Image) -> Image.Image:
        """Scales so that the image covers size / crop_fraction; rounds as torchvision does."""
        height, width = self.size
        down, across = (math.floor(side / self.crop_fraction) for side in self.size)
        if image.height * across <= image.width * down:  # the height decides
            scaled = (down, int(down * image.width / image.height))
        else:
            scaled = (int(across * image.height / image.width), across)
        resized = self._resized(image, scaled)
        top, left = round((scaled[0] - height) / 2), round((scaled[1] - width) / 2)
        return resized.crop((left, top, left + width, top + height))

    def _pad(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        scale = min(height / image.height, width / image.width)
        scaled = tuple(max(1, round(side * scale)) for side in (image.height, image.width))
        canvas = Image.new("RGB", (width, height), "white")
        resized = self._resized(image, (scaled[0], scaled[1]))
        canvas.paste(resized, ((width - scaled[1]) // 2, (height - scaled[0]) // 2))
        return canvas

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        height, width = size
        if image.size == (width, height):
            return image
        return image.resize((width, height), INTERPOLATIONS[self.interpolation])


def composite(image: np.ndarray, background: int | np.ndarray = 255) -> np.ndarray:
    """Composites an image with straight alpha on a background.

    Args:
        image: uint8 (H, W, 4); (H, W, 3) is returned as it is.
        background: grey level or colour.

    Returns:
        uint8 (H, W, 3).
    """
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.uint16)
    blended = image[..., :3] * alpha + np.asarray(background, np.uint16) * (255 - alpha) + 128
    # Exactly round(blended / 255), several times faster than a division.
    return ((blended + (blended >> 8)) >> 8).astype(np.uint8)
