"""Deformable convolution (Dai et al. 2017; Zhu et al. 2019, "Deformable ConvNets v2")."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.models.ops.sampling import bilinear_sample
from vit_jax.models.sizes import Size


def deform_conv2d(
    features: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_h kernel_w channels outputs"],
    offsets: Float[Array, "batch rows columns taps 2"],
    mask: Float[Array, "batch rows columns taps"] | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "batch rows columns outputs"]:
    """Convolution whose taps are moved by offsets, and weighted by a mask (modulation).

    Equal to `torchvision.ops.deform_conv2d` with one group of offsets. Samples are bilinear, and
    zero outside of the map. The memory is that of the samples, `taps` times that of the output's
    positions with all channels.

    Args:
        features: (B, H, W, C).
        kernel: (kernel_h, kernel_w, C, D).
        offsets: (y, x) of each tap relative to its regular place, in cells of `features`, (B, h, w,
            kernel_h kernel_w, 2); taps are ordered by rows.
        mask: weight of each tap, (B, h, w, kernel_h kernel_w); None for ones.
        stride: distance of neighbouring outputs, in cells.
        padding: cells of zeros around the map.

    Returns:
        (B, h, w, D), dtype of `features`.

    Raises:
        UserError: offsets for another size of the output than that of the convolution.
    """
    batch, height, width, channels = features.shape
    size, outputs = kernel.shape[:2], kernel.shape[-1]
    rows, columns = (
        (side + 2 * padding - taps) // stride + 1
        for side, taps in zip((height, width), size, strict=True)
    )
    expected = (batch, rows, columns, size[0] * size[1], 2)
    if offsets.shape != expected:
        raise UserError(f"offsets: expected the shape {expected}; found {offsets.shape}")
    regular = jnp.asarray(_regular_taps((rows, columns), (size[0], size[1]), stride, padding))
    # Cells (y, x) to fractions (x, y) of the map, the unit of `bilinear_sample`.
    cells = (offsets.astype(jnp.float32) + regular)[..., ::-1]
    points = (cells + 0.5) / jnp.float32([width, height])
    sampled = bilinear_sample(features, points.reshape(batch, -1, 2))
    sampled = sampled.reshape(batch, rows, columns, -1, channels)
    if mask is not None:
        sampled = sampled * mask[..., None].astype(sampled.dtype)
    taps = kernel.reshape(-1, channels, outputs).astype(sampled.dtype)
    return jnp.einsum("bhwkc,kcd->bhwd", sampled, taps)


def _regular_taps(output: Size, kernel: Size, stride: int, padding: int) -> np.ndarray:
    """Cells (y, x) that the taps of a convolution read, float32 (h, w, taps, 2)."""
    out_y, out_x, tap_y, tap_x = np.ogrid[tuple(slice(n) for n in (*output, *kernel))]
    y, x = np.broadcast_arrays(out_y * stride - padding + tap_y, out_x * stride - padding + tap_x)
    return np.stack([y, x], axis=-1).reshape(*output, -1, 2).astype(np.float32)
