"""ViT of big_vision (github.com/google-research/big_vision), `.npz`.

Blocks are numbered, or stacked if the model was scanned. The class token joins after the positions
are added and has no position.
"""

import logging
from typing import ClassVar

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.layers.weights import ResizePositions
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.weights.timm import FOLDED_CLASS_POSITION
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.flax import (
    ATTENTION,
    BlockNames,
    blocks,
    linear,
    map_head,
    norm,
)
from vit_jax.weights.transforms import LEADING_ONE

logger = logging.getLogger(__name__)

NAMES = BlockNames()


class BigVision(Format):
    """Base class of the formats of big_vision.

    Attributes:
        scanned: whether the blocks of a file are stacked.
        tower: prefix of the image tower's names.
    """

    container = "npz"
    position_resize = "bilinear_corners"
    scanned: ClassVar[bool] = False
    tower: ClassVar[str] = ""

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has blocks of big_vision at the place of this format."""
        block = "encoderblock" if self.scanned else "encoderblock_0"
        key = f"{self.tower}Transformer/{block}/{ATTENTION}_0/out/kernel"
        return key in file

    def image_tower(self, config: ViTConfig, path: str = "") -> list[Entry]:
        """Returns the entries of an image tower without a head.

        Args:
            config: architecture of the tower.
            path: prefix of the paths in the model.

        Raises:
            UserError: big_vision has no such model.
        """
        if config.position_init == "fixed_sincos":
            raise UserError(
                f"the format {self.name} has fixed positions of other wavelengths: expected "
                "position_init='normal' or 'sincos'; found 'fixed_sincos'"
            )
        key = self.tower
        entries = [
            *linear(f"{path}patch_embed", f"{key}embedding"),
            *_positions(config, path, key),
            *self.blocks(f"{path}transformer", f"{key}Transformer", config.depth),
            *norm(f"{path}norm", f"{key}Transformer/encoder_norm"),
        ]
        if config.pool == "map":
            entries += map_head(f"{path}map_head", f"{key}MAPHead_0")
        return entries

    def blocks(self, path: str, key: str, depth: int) -> list[Entry]:
        """Returns the entries of the blocks of a transformer.

        Args:
            path: path of the transformer in the model.
            key: name of the transformer in the file.
            depth: number of blocks.
        """
        return blocks(f"{path}/blocks", f"{key}/encoderblock", NAMES, depth, scanned=self.scanned)


class BigVisionViT(BigVision):
    """Classifiers and towers with numbered blocks.

    Files of models with `posemb="sincos2d"` contain no positions. They are loaded as models with
    learned positions, which a saved file then contains.
    """

    name = "big_vision"
    architectures = (ViTConfig,)
    heads = ("head/*",)

    def view(self, file: TensorFile, architecture: ViTConfig) -> TensorFile:
        """Returns the file, with fixed positions if it has none; see `Format.view`."""
        if "pos_embedding" in file:
            return file
        logger.info("%s has no positions: using sine-cosine positions", file)
        positions = fixed_positions(architecture.grid, architecture.width)
        return file.with_tensor("pos_embedding", positions)

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        head = linear("head", "head") if architecture.num_classes else []
        return self.image_tower(architecture) + head


class BigVisionScannedViT(BigVisionViT):
    """Classifiers and towers with stacked blocks."""

    name = "big_vision_scanned"
    scanned = True


def fixed_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """Returns the sine-cosine positions of big_vision.

    Unlike those of MAE (`sincos_positions`), the last rate is exactly 1 / temperature.

    Args:
        grid: rows and columns of patches.
        width: width D of the tokens.

    Returns:
        float32 (1, rows * columns, D).
    """
    rows, columns = (c.reshape(-1, 1) for c in np.indices(grid))
    rates = 1e4 ** -(np.arange(width // 4) / (width // 4 - 1))
    angles = [x * rates for x in (columns, rows)]
    parts = [f(a) for a in angles for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1, dtype=np.float32)[None]


def _positions(config: ViTConfig, path: str, key: str) -> list[Entry]:
    paths, keys = (f"{path}class_token", f"{path}positions"), (f"{key}cls", f"{key}pos_embedding")
    if config.class_token and config.prefix_positions:
        resize = ResizePositions(config.table_grid, 1, config.position_resize)
        return [Entry(paths, keys, FOLDED_CLASS_POSITION, resize=resize)]
    resize = ResizePositions(config.table_grid, 0, config.position_resize)
    entries = [Entry(paths[1], keys[1], LEADING_ONE, resize=resize)]
    if config.class_token:
        entries.append(Entry(paths[0], keys[0], LEADING_ONE))
    return entries
