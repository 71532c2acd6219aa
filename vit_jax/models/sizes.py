"""Sizes of images and feature maps, height before width."""

from vit_jax.errors import UserError

# (height, width) in pixels, (rows, columns) of patches, or (rows, columns) of a window.
Size = tuple[int, int]
# Field type of an architecture: an int stands for a square image.
ImageSize = int | tuple[int, int]


def as_size(image_size: ImageSize) -> Size:
    """Normalises an image size to (height, width).

    Args:
        image_size: (height, width), or the side of a square, px.

    Raises:
        UserError: not one or two positive integers.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or any(side < 1 for side in size):
        raise UserError(f"image_size={image_size}: expected a positive int or (height, width)")
    return size[0], size[1]


def grid_of(
    size: Size, patch_size: int, described: str = "", *, drop_remainder: bool = False
) -> Size:
    """Computes the rows and columns of patches of an image.

    Args:
        size: (height, width) of the image, px.
        patch_size: side of a patch, px.
        described: the size in words, for the message; by default "images of H x W px".
        drop_remainder: whether pixels at the lower and right edge that fill no patch are left out.

    Raises:
        UserError: a side that the patch size does not divide, unless the remainder is left out.
    """
    height, width = size
    if not drop_remainder and (height % patch_size or width % patch_size):
        described = described or f"images of {height} x {width} px"
        raise UserError(f"patch_size={patch_size} does not divide {described}")
    return height // patch_size, width // patch_size
