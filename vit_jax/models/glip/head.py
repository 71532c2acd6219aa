"""Predictions of GLIP for each position: similarity to the tokens, box, centerness."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vit_jax.models.layers.heads import linear_layer, logit
from vit_jax.models.layers.parameters import TORCH_INIT, metadata
from vit_jax.models.sizes import Size

# Initial probability of a match (Lin et al. 2017, "Focal Loss for Dense Object Detection").
_PRIOR = 0.01
_LARGEST = 50_000.0  # of the logits
_SMALLEST_NORM = 1e-12
_NORMAL = initializers.normal(0.01)
_ZEROS = initializers.zeros


class Head(nnx.Module):
    """Linear heads of the positions, and the projection of the tokens. All are float32."""

    def __init__(self, width: int, text_width: int, levels: int, *, rngs: nnx.Rngs) -> None:
        """Builds the layers.

        Args:
            width: number of features of a position D.
            text_width: number of features of a token E.
            levels: number of levels L.
            rngs: source of the parameters' keys.
        """
        last: tuple[Any, ...] = (_NORMAL, jnp.float32, rngs)
        self.box = linear_layer(width, 4, ("embed", "boxes"), *last)
        self.centerness = linear_layer(width, 1, ("embed", "boxes"), *last)
        self.token = linear_layer(
            text_width, width, ("embed", "joint"), TORCH_INIT, jnp.float32, rngs
        )
        self.token_bias = nnx.Param(
            _ZEROS(rngs.params(), (text_width,)), **metadata("embed", decay=False)
        )
        offset, scalar = logit(_PRIOR), metadata("outputs", decay=False)
        self.bias = nnx.Param(jnp.full((1,), offset, jnp.float32), **scalar)
        self.log_scale = nnx.Param(jnp.zeros((1,)), **scalar)
        self.scales = nnx.Param(jnp.ones((levels, 1)), **metadata("levels", "outputs", decay=False))

    def similarity(
        self,
        image: Float[Array, "batch positions width"],
        text: Float[Array, "batch length text_width"],
    ) -> Float[Array, "batch positions length"]:
        """Computes the logits of each token at each position, float32 (B, S, T).

        Tokens are normalised and projected; their bias depends on the token.

        Args:
            image: (B, S, D).
            text: (B, T, E).
        """
        text = text.astype(jnp.float32)
        norm = jnp.linalg.norm(text, axis=-1, keepdims=True)
        text = text / jnp.maximum(norm, _SMALLEST_NORM)
        products = jnp.einsum("bsd,btd->bst", image.astype(jnp.float32), self.token(text / 2))
        bias = text @ self.token_bias[...] + self.bias[...]
        logits = products / jnp.exp(self.log_scale[...]) + bias[:, None]
        return jnp.clip(logits, -_LARGEST, _LARGEST)

    def boxes(
        self, image: Float[Array, "batch positions width"], sizes: tuple[Size, ...]
    ) -> tuple[Float[Array, "batch positions 4"], Float[Array, "batch positions"]]:
        """Computes deltas of boxes (B, S, 4) and logits of centerness (B, S), float32.

        Args:
            image: (B, S, D).
            sizes: rows and columns of each level.
        """
        image = image.astype(jnp.float32)
        level = np.repeat(np.arange(len(sizes)), [rows * columns for rows, columns in sizes])
        return self.box(image) * self.scales[...][level], self.centerness(image)[..., 0]
