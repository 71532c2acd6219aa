"""Embeddings of patches without training (Zhou et al. 2022, MaskCLIP, section 3.2).

"Extract Free Dense Labels from CLIP": where features are pooled by attention, each patch keeps its
own value. Queries and keys are left out, value and output projections remain.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIP, as_embedding
from vit_jax.models.layers.parameters import weights
from vit_jax.models.layers.pooling import MAPHead
from vit_jax.models.layers.stacking import layer_of
from vit_jax.models.layers.transformer import Block
from vit_jax.models.sizes import grid_of
from vit_jax.models.vit.model import ViT, ViTConfig

Tokens = Float[Array, "batch tokens dim"]


def check_dense(architecture: object) -> None:
    """Refuses models whose patches have no embeddings.

    Args:
        architecture: config dataclass of the model.

    Raises:
        UserError: a model that is no dual encoder, an image tower that is not a ViT, one of a
            single block, or one with AIMv2's pooling.
    """
    image = getattr(architecture, "image", None)
    if image is None or not hasattr(architecture, "text"):
        raise UserError(
            "embeddings of patches: expected a dual encoder, as clip_vit_b16; found "
            f"{type(architecture).__name__}"
        )
    if not isinstance(image, ViTConfig):
        raise UserError(
            "embeddings of patches: expected a dual encoder whose image tower is a ViT, as "
            f"clip_vit_b16; found {type(image).__name__}"
        )
    if image.pool == "query":
        raise UserError(
            "embeddings of patches: expected an image tower with pool='class', 'mean' or 'map'; "
            "found 'query'"
        )
    if image.pool != "map" and image.depth < 2:
        raise UserError(
            "embeddings of patches: expected an image tower of at least 2 blocks; found 1"
        )


def embed_patches(
    model: CLIP, images: Float[Array, "batch height width 3"]
) -> Float[Array, "batch rows columns embed"]:
    """Computes an embedding for each patch, to be compared with those of texts.

    - Towers with attention pooling (SigLIP): the pooling's value, output projection and MLP are
      applied to each patch.
    - Towers that pool the class token (CLIP) or the mean: the last block is, in which each patch
      attends to itself. Residual connections and MLP remain, as in the authors' code. The final
      norm and the projection follow.

    Args:
        model: dual encoder with a ViT.
        images: (B, H, W, 3), normalised; any H and W that the patch size divides.

    Returns:
        (B, H / patch_size, W / patch_size, embed_dim), float32, of length 1.

    Raises:
        UserError: see `check_dense`.
    """
    check_dense(model.config)
    tower: ViT = model.image
    config = tower.config
    if config.pool == "map":
        [x] = tower.features(images, layers=(-1,))
        x = _own_values(tower.map_head, tower.norm(x[:, config.num_prefix :]))
    else:
        [x] = tower.features(images, layers=(-2,))
        x = tower.norm(_attending_to_itself(tower, x[:, config.num_prefix :]))
    if model.config.image_projection:
        x = model.image_projection(x)
    rows, columns = grid_of(
        (images.shape[1], images.shape[2]),
        config.patch_size,
        drop_remainder=config.drop_remainder,
    )
    return as_embedding(x, normalize=True).reshape(len(x), rows, columns, -1)


def _attending_to_itself(tower: ViT, x: Tokens) -> Tokens:
    """The last block of a tower, of which each token attends to itself only."""
    graphdef, params = nnx.split(tower.transformer.blocks)
    block: Block = nnx.merge(graphdef, layer_of(params, -1))
    kernel, bias = block.attention.qkv_weights(x.dtype)
    branch = block.attention.out(_project(block.norm1(x), kernel[:, 2], bias[2]))
    x = x + (block.scale1(branch) if block.layer_scale else branch)
    branch = block.mlp(block.norm2(x))
    return x + (block.scale2(branch) if block.layer_scale else branch)


def _own_values(head: MAPHead, x: Tokens) -> Tokens:
    """Attention pooling of each token alone."""
    kernel, bias = weights(head.key_value, x.dtype)
    x = head.out(_project(x, kernel[:, 1], bias[1]))
    return x + head.mlp(head.norm(x))


def _project(x: Tokens, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.einsum("bnd,dhk->bnhk", x, kernel) + bias
