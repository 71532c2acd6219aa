"""Sizes of blocks of TPU kernels."""

LANES = 128  # width of a register, in elements


def padded(size: int, tile: int) -> int:
    """Rounds a size up to a multiple of a tile.

    Args:
        size: number of elements.
        tile: elements of a tile.
    """
    return -(-size // tile) * tile


def largest_divisor(size: int, most: int) -> int:
    """Largest divisor of a size that is not larger than a bound; at least 1.

    Args:
        size: number of elements.
        most: bound.
    """
    return max(n for n in range(1, max(1, most) + 1) if size % n == 0)
