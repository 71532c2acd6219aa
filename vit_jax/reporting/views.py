"""Looks into the model of a run: attention, positions, masked reconstructions.

They need the model, so that `vit-jax report --recompute` stores them beside the predictions, as
`predictions/model/NAME/predictions.npz`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from vit_jax.data.images import read_image
from vit_jax.data.sources import Source
from vit_jax.evaluators import predictions
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params
from vit_jax.models.mae.drawing import draw_reconstruction
from vit_jax.models.mae.model import MAE
from vit_jax.models.sizes import grid_of
from vit_jax.models.vit.attention_maps import attention_maps, attention_rollout
from vit_jax.models.vit.model import ViT, ViTConfig
from vit_jax.paths import StrPath

IMAGES, HEADS, POSITIONS = 4, 6, 14
"""Numbers of images, of heads of the last block, and of rows and columns of positions."""

Pixels = UInt8[np.ndarray, "batch height width 3"]


def store(
    workdir: StrPath,
    embedder: Embedder,
    params: Params,
    source: Source,
    objective: dict[str, Any],
) -> None:
    """Stores the views that apply to the model: a ViT, or a model with one as its `image`.

    Args:
        workdir: folder of the run, local or in a bucket.
        embedder: gives the model, its inputs and the devices.
        params: parameters of the model.
        source: examples with an image each.
        objective: block `config.objective` of the run.
    """
    model = embedder.model.bind(embedder.model.shapes())
    tower = getattr(model, "image", model)
    if not isinstance(tower, ViT):
        return
    rows = predictions.evenly(len(source), IMAGES).tolist()
    limit, inputs = embedder.max_image_pixels, embedder.inputs
    if inputs.is_naflex:  # maps of several sizes do not fit into one array
        inputs = dataclasses.replace(inputs, resize="squash")
    pixels = np.stack([inputs(read_image(source[row]["image"], max_pixels=limit)) for row in rows])
    views = {"attention": attention(embedder, params, pixels, tower.config)}
    if tower.config.position_init != "fixed_sincos":
        positions = params.get("image", params)["positions"]
        views["positions"] = position_similarity(np.asarray(positions), tower.config)
    if isinstance(model, MAE):
        views["reconstruction"] = reconstruction(embedder, params, pixels, objective)
    for name, arrays in views.items():
        predictions.save(workdir, f"model/{name}", {"kind": np.array(name), **arrays})


def attention(
    embedder: Embedder, params: Params, pixels: Pixels, config: ViTConfig
) -> predictions.Arrays:
    """Computes where the pooled features come from.

    That is the class token where it is pooled, else the mean of the patches.

    Args:
        embedder: runs the model.
        params: parameters of the model.
        pixels: inputs of the model.
        config: architecture of the ViT.

    Returns:
        `image`, thumbnails (B,); by patch, float32: `rollout` (B, h, w) through all blocks, and
        `heads` (B, H, h, w), the attention of the first heads of the last block.
    """
    grid = grid_of(
        (pixels.shape[1], pixels.shape[2]),
        config.patch_size,
        drop_remainder=config.drop_remainder,
    )
    patches = slice(config.num_prefix, None)
    pooled = slice(1) if config.pool == "class" else patches

    def compute(model: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        tower = getattr(model, "image", model)
        maps = attention_maps(tower, embedder.inputs.normalize(images))
        last = maps[-1, :, :HEADS]
        return tuple(  # type: ignore[return-value]
            jnp.mean(each[..., pooled, patches], axis=-2)
            for each in (attention_rollout(maps), last)
        )

    found = jax.device_get(embedder.compile(compute)(params, pixels))
    rollout, heads = (each.reshape(*each.shape[:-1], *grid) for each in found)
    return {"image": _thumbnails(pixels), "rollout": rollout, "heads": heads}


def position_similarity(
    positions: Float[np.ndarray, "length width"], config: ViTConfig
) -> predictions.Arrays:
    """Computes how similar learned positions are (Dosovitskiy et al. 2021, figure 7).

    Args:
        positions: table of positions; rows of class and distillation tokens come first.
        config: architecture of the ViT.

    Returns:
        `similarity` (r, c, h, w), float32: cosine similarity of the position of a patch with those
        of all patches, for at most 14 rows and columns at even distances.
    """
    rows, columns = config.table_grid
    table = positions[config.num_position_rows :].astype(np.float64)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    similarity = (table @ table.T).reshape(rows, columns, rows, columns)
    chosen = [predictions.evenly(count, POSITIONS) for count in (rows, columns)]
    return {"similarity": similarity[np.ix_(*chosen)].astype(np.float32)}


def reconstruction(
    embedder: Embedder, params: Params, pixels: Pixels, objective: dict[str, Any]
) -> predictions.Arrays:
    """Reconstructs images of which patches are hidden (He et al. 2022, figure 2).

    Args:
        embedder: runs the model.
        params: parameters of the model.
        pixels: inputs of the model.
        objective: block of the objective; `mask_ratio` and `normalize_pixels`.

    Returns:
        `image`, `masked`, and `reconstructed`, thumbnails (B,); visible patches are those of the
        image.
    """
    patch = embedder.model.architecture.image.patch_size
    count = pixels.shape[1] * pixels.shape[2] // patch**2
    noise = jax.random.uniform(jax.random.key(0), (len(pixels), count))

    def compute(model: Any, images: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = embedder.inputs.normalize(images)
        return model.reconstruct(images, noise, objective["mask_ratio"])

    predicted, mask = embedder.compile(compute)(params, pixels, noise)
    masked, reconstructed = draw_reconstruction(
        predicted, mask, pixels, embedder.inputs, normalized=objective["normalize_pixels"]
    )
    return {
        "image": _thumbnails(pixels),
        "masked": _thumbnails(masked),
        "reconstructed": _thumbnails(reconstructed),
    }


def _thumbnails(pixels: Pixels) -> np.ndarray:
    return np.array([predictions.thumbnail(each) for each in pixels], np.bytes_)
