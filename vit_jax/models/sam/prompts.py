"""Prompt encoder of SAM: points, boxes and masks (Kirillov et al. 2023, appendix A)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Int

from vit_jax.models.layers.convolution import convolution
from vit_jax.models.layers.mlp import ACTIVATIONS
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.layers.parameters import metadata
from vit_jax.models.sizes import Size

# Labels of points, as in the ONNX models of the authors; the last one is that of transformers.
BACKGROUND, FOREGROUND, UPPER_LEFT, LOWER_RIGHT, NO_POINT, PADDING = 0, 1, 2, 3, -1, -10
NUM_KINDS = 4  # labels with an embedding of their own
MASK_SCALE = 4  # rows of a mask per row of the image's features

_NORMAL = initializers.normal(1.0)
_LECUN = initializers.lecun_normal()

Points = Float[Array, "batch prompts points 2"]
Labels = Int[Array, "batch prompts points"]


class PromptEncoder(nnx.Module):
    """Embeds points with labels, among them the corners of boxes, and masks."""

    def __init__(
        self, width: int, mask_width: int, *, norm_epsilon: float, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        """Builds the encoder.

        Args:
            width: number of features C.
            mask_width: number of features between the convolutions of masks; a multiple of 4.
            norm_epsilon: epsilon of LayerNorm.
            dtype: compute type of the convolutions.
            rngs: source of the parameters' keys.
        """
        self.dtype = dtype
        # Random frequencies (Tancik et al. 2020) with the authors' scale of 1. They stay as drawn.
        self.frequencies = nnx.Param(
            _NORMAL(rngs.params(), (2, width // 2)),
            **metadata("coordinates", "embed", decay=False),
            trainable=False,
        )

        def vectors(*shape: int) -> nnx.Param:
            axes = ("kinds", "embed")[-len(shape) :]
            return nnx.Param(_NORMAL(rngs.params(), shape), **metadata(*axes, decay=False))

        self.kinds = vectors(NUM_KINDS, width)
        self.no_point, self.no_mask = vectors(width), vectors(width)
        execution: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        conv: dict[str, Any] = {"use_bias": True, "kernel_init": _LECUN, **execution}
        norm: dict[str, Any] = {"epsilon": norm_epsilon, **execution}
        self.mask_conv1 = convolution(1, mask_width // 4, 2, 2, padding=0, **conv)
        self.mask_norm1 = layer_norm(mask_width // 4, **norm)
        self.mask_conv2 = convolution(mask_width // 4, mask_width, 2, 2, padding=0, **conv)
        self.mask_norm2 = layer_norm(mask_width, **norm)
        self.mask_conv3 = convolution(mask_width, width, 1, **conv)

    def embed_points(
        self, points: Points, labels: Labels, size: Size
    ) -> Float[Array, "batch prompts points channels"]:
        """Embeds points.

        Args:
            points: x and y of pixels in the input (B, P, N, 2); 0 is the first pixel.
            labels: label of each point (B, P, N), one of this module. `NO_POINT` is a token without
                a position. `PADDING` is a token of zeros, which the decoder attends to.
            size: height and width of the input, px.

        Returns:
            (B, P, N, C), float32.
        """
        relative = (points + 0.5) / jnp.asarray(size[::-1], jnp.float32)
        embedded = self.embed_positions(relative)
        kind = jax.nn.one_hot(labels, NUM_KINDS, dtype=jnp.float32)  # zeros for other labels
        embedded += jnp.einsum("bpnk,kc->bpnc", kind, self.kinds[...], precision="highest")
        embedded = jnp.where(labels[..., None] == NO_POINT, self.no_point[...], embedded)
        return jnp.where(labels[..., None] == PADDING, 0.0, embedded)

    def embed_positions(self, relative: Float[Array, "*n 2"]) -> Float[Array, "*n channels"]:
        """Computes sines and cosines of positions with random frequencies, float32.

        Args:
            relative: x and y in [0, 1] of the input (..., 2).
        """
        # Frequencies times coordinates lose their phase at a lower precision.
        frequencies = jax.lax.stop_gradient(self.frequencies[...])
        angles = jnp.dot(2 * relative - 1, frequencies, precision="highest") * (2 * math.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def embed_grid(self, size: Size) -> Float[Array, "rows columns channels"]:
        """Computes the positions of the image's features.

        Args:
            size: rows and columns.

        Returns:
            (rows, columns, C), float32.
        """
        y, x = ((jnp.arange(n, dtype=jnp.float32) + 0.5) / n for n in size)
        return self.embed_positions(jnp.stack(jnp.meshgrid(x, y), axis=-1))

    def embed_masks(
        self, masks: Float[Array, "n height width"]
    ) -> Float[Array, "n rows columns channels"]:
        """Embeds masks.

        Args:
            masks: logits (N, 4 h, 4 w), as the decoder predicts them.

        Returns:
            (N, h, w, C), compute type.
        """
        gelu = ACTIVATIONS["gelu"]
        x = gelu(self.mask_norm1(self.mask_conv1(masks[..., None])))
        return self.mask_conv3(gelu(self.mask_norm2(self.mask_conv2(x))))


def join_prompts(
    points: Points | None, labels: Labels | None, boxes: Float[Array, "batch prompts 4"] | None
) -> tuple[Float[Array, "batch prompts all_points 2"], Int[Array, "batch prompts all_points"]]:
    """Joins points and boxes to the points that the encoder reads.

    A point without a position is added where there is no box, as the weights were trained with.

    Args:
        points: x and y of pixels in the input (B, P, N, 2); None for none.
        labels: `FOREGROUND` or `BACKGROUND` of each point (B, P, N).
        boxes: x0, y0, x1, y1 in pixels of the input (B, P, 4); None for none.

    Returns:
        Points and labels.
    """
    parts = [] if points is None or labels is None else [(points, labels)]
    if boxes is not None:
        corners = boxes.reshape(*boxes.shape[:2], 2, 2)
        kinds = jnp.asarray([UPPER_LEFT, LOWER_RIGHT])
        parts.append((corners, jnp.broadcast_to(kinds, corners.shape[:3])))
    elif parts:
        batch, prompts = parts[0][1].shape[:2]
        parts.append((jnp.zeros((batch, prompts, 1, 2)), jnp.full((batch, prompts, 1), NO_POINT)))
    joined = [jnp.concatenate(each, axis=2) for each in zip(*parts, strict=True)]
    return joined[0], joined[1]
