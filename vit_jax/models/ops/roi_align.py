"""Features of boxes: RoIAlign (He et al. 2017, Mask R-CNN, section 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def roi_align(
    features: Float[Array, "batch height width channels"],
    boxes: Float[Array, "batch n 4"],
    output_size: tuple[int, int],
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int | None = None,
    aligned: bool = True,
) -> Float[Array, "batch n rows columns channels"]:
    """Averages bilinear samples in each bin of a grid over each box.

    Equal to torchvision's `roi_align`, and differentiable in the boxes as well. The samples of a
    box form a grid and bilinear weights are products, so that the whole is two matrix products per
    image, without gathers.

    Args:
        features: (B, H, W, C).
        boxes: (B, N, 4), xyxy in the coordinates of the image.
        output_size: bins per box, (rows, columns).
        spatial_scale: cells of `features` per unit of the boxes, as 1 / 16.
        sampling_ratio: samples per bin along each axis. None: one per cell that a bin covers,
            rounded up, at most as many as for a box of the whole image; a box without area has none
            and yields zeros.
        aligned: whether the center of the first cell is at 0.5 (True) or at 0 (False, with boxes of
            at least one cell, as in the first implementations).

    Returns:
        (B, N, rows, columns, C), dtype of `features`.
    """
    scaled = boxes.astype(jnp.float32) * spatial_scale
    rows, columns = (
        _axis_weights(
            scaled[..., axis],
            scaled[..., axis + 2],
            size=features.shape[2 - axis],
            bins=output_size[1 - axis],
            samples=sampling_ratio,
            aligned=aligned,
        ).astype(features.dtype)
        for axis in (1, 0)
    )
    highest = jax.lax.Precision.HIGHEST
    strips = jnp.einsum("bnph,bhwc->bnpwc", rows, features, precision=highest)
    return jnp.einsum("bnqw,bnpwc->bnpqc", columns, strips, precision=highest)


def _axis_weights(
    low: jax.Array, high: jax.Array, *, size: int, bins: int, samples: int | None, aligned: bool
) -> jax.Array:
    """Weights of the cells of one axis in the bins of each box.

    Args:
        low: start of each box along the axis, in cells, (B, N).
        high: end of each box.
        size: number of cells.
        bins: number of bins.
        samples: samples per bin; None: one per cell.
        aligned: see `roi_align`.

    Returns:
        (B, N, bins, size), float32.
    """
    length = high - low if aligned else jnp.maximum(high - low, 1.0)
    bin_length = length / bins
    most = samples or -(-size // bins)
    count = samples or jnp.clip(jnp.ceil(jax.lax.stop_gradient(bin_length)), 0, most)
    count = jnp.broadcast_to(jnp.float32(count), low.shape)[..., None, None]
    safe = jnp.maximum(count, 1)
    position = jnp.arange(bins)[:, None] + (jnp.arange(most) + 0.5) / safe  # in bins
    position = low[..., None, None] + position * bin_length[..., None, None] - 0.5 * aligned
    used = (jnp.arange(most) < count) & (position >= -1) & (position <= size)
    # Within one cell of the border, samples repeat the border.
    distance = jnp.clip(position, 0, size - 1)[..., None] - jnp.arange(size)
    weights = jnp.maximum(1 - jnp.abs(distance), 0)
    return jnp.sum(weights * used[..., None], axis=-2) / safe
