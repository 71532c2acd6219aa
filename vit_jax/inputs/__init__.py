"""Preprocessing of images for a model.

`ImageInputs` belongs to a model. Training, evaluation, teachers and `create_model` share it.
Augmentation runs before it.
"""

import dataclasses
import math
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from vit_jax.errors import UserError, check_name
from vit_jax.inputs import patches
from vit_jax.inputs.patches import Images, PatchSequence
from vit_jax.inputs.scaling import composite, corner, source_of

NAFLEX = "naflex"
RESIZES = ("crop", "squash", "pad", "square", "corner", "fit", "longest", NAFLEX)
# An image that would be enlarged to more pixels than both of these is cropped first.
_MAX_ENLARGED = 1 << 23
_MAX_ENLARGED_SIZES = 16  # multiple of the pixels of the size
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
AnyArray = Array | np.ndarray
Channels = tuple[float, float, float]
HALF: Channels = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """Size, resizing and normalisation of a model's input images.

    Pixels travel to the devices as uint8, a quarter of the bytes of float32, and flat, because a
    TPU pads a last dimension of 3 to 128. `normalize` is the last step, on the devices.

    Attributes:
        size: height and width, px; (0, 0) until a `ModelSpec` sets its architecture's.
        resize: how an image is fitted into the size:
            "crop": scale it until it covers size / crop_fraction, keeping the aspect ratio, and
            take the centre. A square size rounds as torchvision's `Resize` and `CenterCrop`, any
            other size as timm's `ResizeKeepRatio`.
            "squash": scale height and width independently to size / crop_fraction, and take the
            centre.
            "pad": scale it until it fits into the size, keeping the aspect ratio, and centre it on
            white.
            "square": place it in the centre of a square of the mean colour, and crop that, as
            LLaVA's authors do.
            "corner": place it in the upper left corner of a black square, and scale the square to
            the size, as OWLv2 does. The interpolation is bilinear, after a Gaussian blur if the
            square is made smaller.
            "fit": scale it until its shorter side is `shortest_edge`, or its longer side that of
            the size if that is smaller, keeping the aspect ratio, and place it in the upper left
            corner on the mean colour, as DETR does. `scaled_size` is the size of the scaled image.
            "longest": the same with a scale at which the image just fits into the size, as SAM.
            "naflex": scale it, keeping the aspect ratio, to as many whole patches as an image of
            the size has, or as few less as possible, as SigLIP 2 NaFlex. The size is a budget
            only, and the model's input are patches, see `inputs.patches`.
        crop_fraction: fraction of the scaled shortest edge that the crop keeps; for "crop",
            "square" and "squash".
        shortest_edge: shorter side of a scaled image, px; for "fit".
        patch_size: side of a patch, px; set with the size, for "naflex".
        interpolation: "bicubic" or "bilinear", with antialiasing; "bilinear" for "corner".
        mean: value subtracted from each channel, for pixels in [0, 1].
        std: divisor of each channel, for pixels in [0, 1].

    Example:
        >>> inputs = ImageInputs(size=(8, 8), resize="pad")
        >>> inputs(np.zeros((20, 30, 3), np.uint8)).shape
        (8, 8, 3)
    """

    size: tuple[int, int] = (0, 0)
    resize: str = "crop"
    crop_fraction: float = 1.0
    shortest_edge: int = 0
    patch_size: int = 0
    interpolation: str = "bicubic"
    mean: Channels = HALF
    std: Channels = HALF

    def __post_init__(self) -> None:
        check_name(self.resize, RESIZES, "inputs.resize,")
        check_name(self.interpolation, INTERPOLATIONS, "inputs.interpolation,")
        if not 0 < self.crop_fraction <= 1:
            raise UserError(
                f"inputs.crop_fraction={self.crop_fraction}: expected a number above 0, at most 1"
            )
        if (self.resize == "fit") is not (self.shortest_edge > 0):
            raise UserError(
                "expected inputs.shortest_edge above 0 with inputs.resize='fit', and 0 otherwise; "
                f"found {self.shortest_edge} with {self.resize!r}"
            )
        if self.resize == "corner" and (self.interpolation, self.crop_fraction) != ("bilinear", 1):
            raise UserError(
                "inputs.resize='corner' needs interpolation='bilinear' and crop_fraction=1; found "
                f"{self.interpolation!r} and {self.crop_fraction}"
            )

    def __call__(
        self, image: UInt8[np.ndarray, "_ _ channels"]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Resizes and crops an image.

        Args:
            image: uint8 (H, W, 3), or (H, W, 4), whose alpha is composited on white;
                `data.images.read_image` reads images of any kind.

        Returns:
            uint8 (height, width, 3), see `size_of`.

        Raises:
            UserError: the size is not set.
        """
        if 0 in self.size or (self.is_naflex and not self.patch_size):
            raise UserError(
                f"inputs.size={self.size}: expected a height and a width above 0, and with "
                f"resize={NAFLEX!r} a patch_size; found {self.patch_size}"
            )
        image = composite(image)
        if self.resize == "corner":
            return corner(image, self.size)
        resize = {
            "crop": self._crop,
            "squash": self._squash,
            "pad": self._pad,
            "square": self._square,
            "fit": self._fit,
            "longest": self._fit,
            NAFLEX: lambda x: self._resized(x, *self.size_of(x.height, x.width)),
        }
        return np.asarray(resize[self.resize](Image.fromarray(image)))

    @property
    def is_naflex(self) -> bool:
        """Whether images keep their aspect ratio, so that the model's input are patches."""
        return self.resize == NAFLEX

    @property
    def max_patches(self) -> int:
        """Largest number of patches of an image, for "naflex"."""
        return math.prod(side // self.patch_size for side in self.size)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size in which the model sees an image, px.

        Args:
            height: height of the image, px.
            width: width of the image, px.

        Returns:
            `size`, or for "naflex" whole patches of about the image's aspect ratio.
        """
        if not self.is_naflex:
            return self.size
        rows, columns = patches.fitting_grid(height, width, self.patch_size, self.max_patches)
        return rows * self.patch_size, columns * self.patch_size

    def extent(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size of the area that the model's input shows, in pixels of the image.

        The area starts at the upper left corner of the image. A box in pixels of the image, divided
        by the extent, is a box relative to the model's input.

        Args:
            height: height of the image, px.
            width: width of the image, px.

        Returns:
            Height and width: those of the image for "squash", and for "fit" and "longest", where
            the padding does not count as part of the input; for "corner", both its longer side.

        Raises:
            UserError: the input shows a part of the image, or the image on a larger canvas.
        """
        if self.resize == "corner":
            return (max(height, width),) * 2
        whole = self.resize == "squash" and self.crop_fraction == 1
        if whole or self.resize in ("fit", "longest"):
            return height, width
        raise UserError(
            "boxes need inputs that show the whole image from its upper left corner: expected "
            "inputs.resize='squash' with crop_fraction=1, 'corner', 'fit' or 'longest'; found "
            f"resize={self.resize!r}, crop_fraction={self.crop_fraction}"
        )

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size of the part of the input that is not padding, px.

        For "fit" and "longest" it is the size of the scaled image, in the upper left corner, with
        the rounding of DETR and of SAM; otherwise that of the whole input.

        Args:
            height: height of the image, px.
            width: width of the image, px.
        """
        if self.resize == "longest":
            scale = min(self.size[0] / height, self.size[1] / width)
            return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        if self.resize != "fit":
            return self.size
        shorter, longer = sorted((height, width))
        edge: float = self.shortest_edge
        if longer / shorter * edge > max(self.size):
            edge = max(self.size) * shorter / longer
        short = max(1, round(edge))
        if short == shorter:
            return height, width
        long = max(short, int(edge * longer / shorter))
        return (short, long) if height <= width else (long, short)

    def restore(
        self, logits: Float[np.ndarray, "rows columns"], height: int, width: int
    ) -> Float32[np.ndarray, "height width"]:
        """Interpolates a map of the model's input to the pixels of an image.

        It is enlarged to the input, cut to the part that is not padding, and resized to the image,
        as transformers' `post_process_masks` of SAM. Both steps are bilinear without antialias.

        Args:
            logits: a value per cell of a grid over the input, as the logits of a mask.
            height: height of the image, px.
            width: width of the image, px.

        Raises:
            UserError: the input shows a part of the image, see `extent`.
        """
        whole = cv2.resize(
            logits.astype(np.float32), self.size[::-1], interpolation=cv2.INTER_LINEAR
        )
        rows, columns = self.scaled_size(height, width)
        part = np.ascontiguousarray(whole[:rows, :columns])
        extent = self.extent(height, width)
        shown = cv2.resize(part, extent[::-1], interpolation=cv2.INTER_LINEAR)
        return shown[:height, :width]

    def pack(self, pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, " packed"]:
        """Flattens an image for the transfer to the devices, for "naflex" with its grid."""
        if self.is_naflex:
            return patches.pack(pixels, self.patch_size, self.max_patches)
        return pixels.reshape(-1)

    def unpack(self, packed: UInt8[np.ndarray, " packed"]) -> UInt8[np.ndarray, "height width 3"]:
        """Returns the image of `pack`."""
        if self.is_naflex:
            return patches.unpack(packed, self.patch_size)
        return packed.reshape(*self.size, 3)

    @property
    def packed_size(self) -> int:
        """Number of values per packed image."""
        if self.is_naflex:
            return patches.packed_size(self.patch_size, self.max_patches)
        return self.size[0] * self.size[1] * 3

    def normalize(
        self, pixels: UInt8[AnyArray, "batch packed"] | UInt8[AnyArray, "batch height width 3"]
    ) -> Any:
        """Converts uint8 pixels to the model's input: ((x / 255) - mean) / std.

        Args:
            pixels: packed images, or images.

        Returns:
            float32 images (B, H, W, 3); for "naflex" and packed images a `PatchSequence`.
        """
        mean, std = (jnp.asarray(x, jnp.float32) for x in (self.mean, self.std))
        if self.is_naflex and pixels.ndim == 2:
            values, grid = patches.split_packed(jnp.asarray(pixels), self.patch_size)
            mean, std = (jnp.tile(x, self.patch_size**2) for x in (mean, std))
            return PatchSequence((values.astype(jnp.float32) / 255.0 - mean) / std, grid)
        # In rows of whole images: a last dimension of 3 costs a TPU 40 times the memory, and its
        # compiler minutes.
        height, width = self.size if pixels.ndim == 2 else pixels.shape[1:3]
        rows = jnp.asarray(pixels, jnp.float32).reshape(-1, height, width * 3) / 255.0
        mean, std = (jnp.tile(x, width) for x in (mean, std))
        return ((rows - mean) / std).reshape(-1, height, width, 3)

    def renormalize(self, images: Images, inputs: "ImageInputs") -> Any:
        """Converts images that are normalised for another model to this model's normalisation.

        Args:
            images: input of the other model.
            inputs: preprocessing of the other model.

        Returns:
            Images, or patches of the same grids.
        """
        scale, shift = (
            jnp.asarray([x / std for x, std in zip(values, self.std, strict=True)])
            for values in (inputs.std, np.subtract(inputs.mean, self.mean).tolist())
        )
        if isinstance(images, PatchSequence):
            scale, shift = (jnp.tile(x, self.patch_size**2) for x in (scale, shift))
            return dataclasses.replace(images, values=images.values * scale + shift)
        return images * scale + shift

    def check_renormalized(self, inputs: "ImageInputs") -> None:
        """Checks that this model can see the images of another model, see `renormalize`.

        Args:
            inputs: preprocessing of the other model.

        Raises:
            UserError: one of both is NaFlex and the other one not, or has other patches.
        """
        kinds = [(x.is_naflex, x.patch_size if x.is_naflex else 0) for x in (self, inputs)]
        if kinds[0] != kinds[1]:
            raise UserError(
                "a teacher sees the images of its student: expected inputs.resize='naflex' with "
                f"patches of one size for both, or for none; found {self.resize!r} with patches "
                f"of {self.patch_size} px, and {inputs.resize!r} with {inputs.patch_size}"
            )

    def _squash(self, image: Image.Image) -> Image.Image:
        if self.crop_fraction == 1:
            return self._resized(image, *self.size)
        height, width = (math.floor(side / self.crop_fraction) for side in self.size)
        return self._centre(image, height, width)

    def _crop(self, image: Image.Image) -> Image.Image:
        return self._centre(image, *self._covering(image.height, image.width))

    def _square(self, image: Image.Image) -> Image.Image:
        side, mean = max(image.size), tuple(int(255 * value) for value in self.mean)
        canvas = Image.new("RGB", (side, side), mean)
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return self._crop(canvas)

    def _centre(self, image: Image.Image, scaled_height: int, scaled_width: int) -> Image.Image:
        """The centre of an image that is scaled to a height and width."""
        height, width = self.size
        top, left = round((scaled_height - height) / 2), round((scaled_width - width) / 2)
        allowed = max(_MAX_ENLARGED, _MAX_ENLARGED_SIZES * height * width)
        if scaled_height * scaled_width > max(allowed, image.height * image.width):
            return self._resized_part(image, scaled_height, scaled_width, top, left)
        resized = self._resized(image, scaled_height, scaled_width)
        return resized.crop((left, top, left + width, top + height))

    def _resized_part(
        self, image: Image.Image, scaled_height: int, scaled_width: int, top: int, left: int
    ) -> Image.Image:
        """Scales only what a crop needs; within one level of scaling the whole."""
        (height, width), method = self.size, INTERPOLATIONS[self.interpolation]
        upper, lower, *rows = source_of(image.height, scaled_height, top, height)
        first, last, *columns = source_of(image.width, scaled_width, left, width)
        part = image.crop((first, upper, last, lower))
        # In the order of Pillow, which rounds in between.
        part = part.resize((width, part.height), method, (columns[0], 0, columns[1], part.height))
        return part.resize((width, height), method, (0, rows[0], width, rows[1]))

    def _covering(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image scaled until it covers size / crop_fraction."""
        down, across = (math.floor(side / self.crop_fraction) for side in self.size)
        if down == across:  # torchvision.transforms.Resize: the longer side is rounded down
            shortest = min(height, width)
            return tuple(  # type: ignore[return-value]
                down if side == shortest else int(down * side / shortest)
                for side in (height, width)
            )
        ratio = min(height / down, width / across)  # timm.data.transforms.ResizeKeepRatio
        return round(height / ratio), round(width / ratio)

    def _pad(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if image.height * width >= image.width * height:  # the height decides
            scaled = height, max(1, round(image.width * height / image.height))
        else:
            scaled = max(1, round(image.height * width / image.width)), width
        canvas = Image.new("RGB", (width, height), "white")
        place = (width - scaled[1]) // 2, (height - scaled[0]) // 2
        canvas.paste(self._resized(image, *scaled), place)
        return canvas

    def _fit(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        scaled = self.scaled_size(image.height, image.width)
        if scaled[0] > height or scaled[1] > width:
            raise UserError(
                f"inputs.size={self.size}: expected at least {scaled}, the scaled size of an image "
                f"of {image.height} x {image.width} px"
            )
        mean = tuple(round(255 * value) for value in self.mean)
        canvas = Image.new("RGB", (width, height), mean)
        canvas.paste(self._resized(image, *scaled), (0, 0))
        return canvas

    def _resized(self, image: Image.Image, height: int, width: int) -> Image.Image:
        if image.size == (width, height):
            return image
        return image.resize((width, height), INTERPOLATIONS[self.interpolation])
