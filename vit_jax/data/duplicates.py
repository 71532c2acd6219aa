"""Exact and near duplicates among images."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image
from scipy import fft, sparse
from scipy.sparse import csgraph

from vit_jax.inputs import composite

MAX_DISTANCE = 3
"""Largest number of bits, of 64, in which the perceptual hashes of near duplicates differ."""

MAX_DIFFERENCE = 8.0
"""Largest mean absolute difference of the thumbnails of near duplicates, levels of 255."""

_THUMBNAIL = 8  # px
_HASHED = 32  # px of the image that is hashed
_LARGE = 1024  # px of the shorter side from which pixels are left out before resizing
_BANDS = MAX_DISTANCE + 1  # of 16 bits: two hashes within the distance agree in one of them


class Fingerprint(NamedTuple):
    """Content of an image in 212 bytes.

    Attributes:
        digest: 16 bytes, equal for equal pixels only.
        phash: perceptual hash, 64 bits.
        thumbnail: uint8 (8 * 8 * 3,), on white.
    """

    digest: bytes
    phash: int
    thumbnail: UInt8[np.ndarray, " 192"]


def reduced(pixels: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    """An RGB image on white of about 1,024 px or less, in bounded memory.

    Args:
        pixels: uint8 (H, W, 3) or (H, W, 4) of any size.
    """
    step = max(1, min(pixels.shape[:2]) // _LARGE)
    return Image.fromarray(composite(pixels[::step, ::step]))


def fingerprint(pixels: UInt8[np.ndarray, "height width channels"]) -> Fingerprint:
    """Computes the fingerprint of an image.

    The perceptual hash is pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image
    Hash Functions", section 3.2.1), as in the package ImageHash: which of the 8 x 8 lowest
    coefficients of a discrete cosine transform of 32 x 32 grey levels are above their median.

    Args:
        pixels: uint8 (H, W, 3) or (H, W, 4).
    """
    digest = hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).data)
    small = reduced(pixels)
    grey = small.convert("L").resize((_HASHED, _HASHED), Image.Resampling.LANCZOS)
    low = fft.dctn(np.asarray(grey, np.float64))[:8, :8]
    bits = np.packbits(low > np.median(low))
    thumbnail = small.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return Fingerprint(
        digest.digest()[:16], int.from_bytes(bits.tobytes(), "big"), np.asarray(thumbnail).ravel()
    )


def exact_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Groups images of equal pixels.

    Args:
        digests: digest of each image.

    Returns:
        Positions of the images of each group of two or more, the largest group first.
    """
    found: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        found.setdefault(digest, []).append(position)
    return _sorted(group for group in found.values() if len(group) > 1)


def near_groups(
    hashes: UInt64[np.ndarray, " images"], thumbnails: UInt8[np.ndarray, "images 192"]
) -> list[list[int]]:
    """Groups images that look the same: their hashes and their thumbnails are close.

    Images are grouped through others, so the first and the last of a long series may differ.

    Args:
        hashes: perceptual hash of each image.
        thumbnails: thumbnail of each image.

    Returns:
        Positions of the images of each group of two or more, the largest group first.
    """
    edges = [_close_pairs(hashes, thumbnails, band) for band in range(_BANDS)]
    first, second = np.concatenate(edges).T
    count = len(hashes)
    graph = sparse.coo_array((np.ones(len(first), bool), (first, second)), (count, count))
    _, labels = csgraph.connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return _sorted(group.tolist() for group in groups if len(group) > 1)


def _close_pairs(hashes: np.ndarray, thumbnails: np.ndarray, band: int) -> Int64[np.ndarray, "n 2"]:
    """Pairs of near duplicates whose hashes agree in 16 bits."""
    keys = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
    order = np.argsort(keys, kind="stable")
    buckets = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
    pairs = [np.zeros((0, 2), np.int64)]
    for bucket in (bucket for bucket in buckets if len(bucket) > 1):
        for i, row in enumerate(bucket[:-1]):
            others = bucket[i + 1 :]
            others = others[np.bitwise_count(hashes[others] ^ hashes[row]) <= MAX_DISTANCE]
            difference = np.abs(thumbnails[others].astype(np.int16) - thumbnails[row]).mean(axis=1)
            others = others[difference <= MAX_DIFFERENCE]
            pairs.append(np.stack([np.full(len(others), row), others], axis=1))
    return np.concatenate(pairs)


def _sorted(groups: Iterable[list[int]]) -> list[list[int]]:
    return sorted(groups, key=lambda group: (-len(group), group))
