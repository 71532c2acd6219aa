"""big_vision (github.com/google-research/big_vision): ViT and SigLIP, `.npz`.

Names are nested with "/"; blocks are numbered, or stacked where the model was scanned. The class
token joins after the positions were added and has none.
"""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.layers.flax import (
    ATTENTION,
    BlockNames,
    blocks,
    linear,
    mlp,
    norm,
    without_optimizer,
)
from vit_jax.weights.mapping import Entry, ResizePositions
from vit_jax.weights.transforms import FLAX_QKV, FLAX_QKV_BIAS, LEADING_ONE, Shape, Transform

logger = logging.getLogger(__name__)

NAMES = BlockNames()


def _split_class(arrays: Sequence[np.ndarray], shapes: Sequence[Shape]) -> list[np.ndarray]:
    del shapes
    token, positions = arrays[0][0], arrays[1][0]
    return [token, np.concatenate([np.zeros_like(token), positions])]


def _fold_class(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    token, positions = arrays
    return [(token + positions[:1])[None], positions[1:][None]]


# A class token with a position of its own <-> one without. What is loaded gets a zero, so that the
# way back is exact; a position that was trained is added to the token, which changes no activation.
FOLDED_CLASS = Transform(_split_class, _fold_class)


def fixed_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """The library's sines and cosines, float32 (1, rows * columns, width).

    Unlike those of MAE (`layers.sincos_positions`), the rates end at 1 / temperature itself.
    """
    rows, columns = (c.reshape(-1, 1) for c in np.indices(grid))
    rates = 1e4 ** -(np.arange(width // 4) / (width // 4 - 1))
    angles = [x * rates for x in (columns, rows)]
    parts = [f(a) for a in angles for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1, dtype=np.float32)[None]


class BigVision(Format):
    """Numbered blocks.

    Models with `posemb="sincos2d"` have no positions in their files. They become those of a model
    that learns them, and are then part of what is written.
    """

    name = "big_vision"
    families = ("vit", "clip")
    container = "npz"
    scanned: ClassVar[bool] = False

    def matches(self, file: TensorFile) -> bool:
        file = without_optimizer(file)
        block = "encoderblock" if self.scanned else "encoderblock_0"
        key = f"Transformer/{block}/{ATTENTION}_0/out/kernel"
        return key in file or f"img/{key}" in file

    def view(self, file: TensorFile, family: str, architecture: Any) -> TensorFile:
        file = without_optimizer(file)
        if family == "vit" and "pos_embedding" not in file:
            logger.info("%s has no positions: the fixed ones are taken", file)
            positions = fixed_positions(architecture.grid, architecture.width)
            return file.with_tensor("pos_embedding", positions)
        return file

    def entries(self, family: str, architecture: Any) -> list[Entry]:
        if family == "vit":
            heads = linear("head", "head") if architecture.num_classes else []
            return self._image_tower(architecture, "", "") + heads
        return self._two_towers(architecture)

    def _two_towers(self, config: CLIPConfig) -> list[Entry]:
        """SigLIP."""
        if not isinstance(config.image, ViTConfig):
            raise UserError(
                f"the format {self.name} holds pairs whose image tower is a ViT; found "
                f"{type(config.image).__name__}"
            )
        found = (config.text.causal, config.text.pool)
        if found != (False, "last"):
            raise UserError(
                f"the format {self.name} holds text towers with causal=False, pool='last'; "
                f"found {found}"
            )
        return [
            *self._image_tower(config.image, "image/", "img/"),
            Entry("text/token_embed/embedding", "txt/Embed_0/embedding"),
            Entry("text/positions", "txt/pos_embedding", LEADING_ONE),
            *self._blocks("text/transformer", "txt/Encoder_0", config.text.depth),
            *norm("text/norm", "txt/Encoder_0/encoder_norm"),
            *linear("text_projection", "txt/head"),
            Entry("logit_scale", "t", LEADING_ONE),
            Entry("logit_bias", "b", LEADING_ONE),
        ]

    def _image_tower(self, config: ViTConfig, path: str, key: str) -> list[Entry]:
        """A tower.

        Args:
            config: of the tower.
            path: before our names.
            key: before theirs.
        """
        if config.position_init == "fixed_sincos":
            raise UserError(
                f"the format {self.name} has fixed positions of other wavelengths: expected "
                "position_init='normal' or 'sincos'; found 'fixed_sincos'"
            )
        entries = [
            *linear(f"{path}patch_embed", f"{key}embedding"),
            *_positions(config, path, key),
            *self._blocks(f"{path}transformer", f"{key}Transformer", config.depth),
            *norm(f"{path}norm", f"{key}Transformer/encoder_norm"),
        ]
        if config.pool == "map":
            entries += _map_head(f"{path}map_head", f"{key}MAPHead_0")
        return entries

    def _blocks(self, path: str, key: str, depth: int) -> list[Entry]:
        return blocks(f"{path}/blocks", f"{key}/encoderblock", NAMES, depth, scanned=self.scanned)


class BigVisionScanned(BigVision):
    """Stacked blocks."""

    name = "big_vision_scanned"
    scanned = True


def _positions(config: ViTConfig, path: str, key: str) -> list[Entry]:
    ours, theirs = (f"{path}class_token", f"{path}positions"), (f"{key}cls", f"{key}pos_embedding")
    if config.class_token and config.prefix_positions:
        resize = ResizePositions(config.grid, num_prefix=1)
        return [Entry(ours, theirs, FOLDED_CLASS, resize=resize)]
    resize = ResizePositions(config.grid)
    entries = [Entry(ours[1], theirs[1], LEADING_ONE, resize=resize)]
    if config.class_token:
        entries.append(Entry(ours[0], theirs[0], LEADING_ONE))
    return entries


def _map_head(path: str, key: str) -> list[Entry]:
    attention = f"{key}/{ATTENTION}_0"
    kernels = (f"{attention}/key/kernel", f"{attention}/value/kernel")
    biases = (f"{attention}/key/bias", f"{attention}/value/bias")
    return [
        Entry(f"{path}/probe", f"{key}/probe", LEADING_ONE),
        *linear(f"{path}/query", f"{attention}/query"),
        Entry(f"{path}/key_value/kernel", kernels, FLAX_QKV),
        Entry(f"{path}/key_value/bias", biases, FLAX_QKV_BIAS),
        *linear(f"{path}/out", f"{attention}/out"),
        *norm(f"{path}/norm", f"{key}/LayerNorm_0"),
        *mlp(f"{path}/mlp", f"{key}/MlpBlock_0"),
    ]
