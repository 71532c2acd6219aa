"""Floating-point operations of a training step by formula, from the architecture alone.

A multiplication and an addition are two operations. Only matmuls and convolutions count, as is the
field's habit (PaLM, Chowdhery et al. 2022, appendix B): on accelerators the rest is limited by
memory. Attention counts in full, causal or not. What rematerialisation repeats is no model FLOP.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.clip_resnet.model import REDUCTION, CLIPResNetConfig
from vit_jax.models.resnet.model import EXPANSION, NUM_STAGES, ResNetConfig
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.swin.stage import StageConfig
from vit_jax.models.vit.model import ViTConfig

# One product forward; backward one for the gradient of each factor.
FORWARD_AND_BACKWARD = 3


@dataclasses.dataclass(frozen=True)
class Tower:
    """Forward FLOPs of an image tower, an image.

    Attributes:
        stem: of the first layer, whose input, the image, needs no gradient.
        rest: of all others, a classifier's head included.
        width: of the pooled features.
    """

    stem: int
    rest: int
    width: int

    @property
    def training(self) -> int:
        """Forward and backward."""
        return (FORWARD_AND_BACKWARD - 1) * self.stem + FORWARD_AND_BACKWARD * self.rest


def training_flops(architecture: Any, batch_size: int) -> int | None:
    """Model FLOPs of a step on a global batch.

    Args:
        architecture: a family's config dataclass.
        batch_size: B, examples; a contrastive model compares all B x B pairs.

    Returns:
        None for a family without a formula here.
    """
    if type(architecture) in _TOWERS:
        return batch_size * image_tower(architecture).training
    if not isinstance(architecture, CLIPConfig):
        return None
    tower, text, joint = image_tower(architecture.image), architecture.text, architecture.embed_dim
    projected = tower.width * architecture.image_projection + text.width
    projections = 2 * projected * joint * FORWARD_AND_BACKWARD
    towers = tower.training + text_training_flops(text)
    loss = 2 * batch_size**2 * joint * FORWARD_AND_BACKWARD
    return batch_size * (towers + projections) + loss


def image_tower(config: Any) -> Tower:
    """Forward FLOPs of any family's image tower."""
    return _TOWERS[type(config)](config)


def text_training_flops(config: TextConfig) -> int:
    """FLOPs of a text tower forward and backward, a caption. Looking up an embedding is none."""
    return FORWARD_AND_BACKWARD * _blocks(config, config.context_length)


# --- ViT and text ---------------------------------------------------------------------------------


def _vit(config: ViTConfig) -> Tower:
    patches = (config.image_size // config.patch_size) ** 2
    tokens = config.num_prefix + patches_kept(patches, config.patch_dropout)
    heads = 2 * config.width * config.num_classes * (1 + config.distillation)
    pool = _map_head(config, tokens) if config.pool == "map" else 0
    return Tower(
        stem=_convolution(patches, config.patch_size, 3, config.width),
        rest=_blocks(config, tokens) + pool + heads,
        width=config.width,
    )


def patches_kept(patches: int, dropout: float) -> int:
    """Patches that patch dropout leaves in training."""
    return max(1, round(patches * (1 - dropout))) if dropout else patches


def _map_head(config: ViTConfig, tokens: int) -> int:
    """Attention pooling: keys and values of all tokens, all else of one."""
    width = config.width
    one_token = 2 * width * width + 2 * width * config.mlp_dim
    return 2 * (one_token + tokens * (2 * width * width + 2 * width))


def _blocks(config: ViTConfig | TextConfig, tokens: int) -> int:
    """All blocks: four D x D projections, the MLP's two, attention's two."""
    width = config.width
    weights = 4 * width * width + 2 * width * config.mlp_dim
    attention = 2 * tokens * width
    return config.depth * 2 * tokens * (weights + attention)


# --- Swin -----------------------------------------------------------------------------------------


def _swin(config: SwinConfig) -> Tower:
    stages = config.stages
    width = stages[-1].width
    patches = (config.image_size // config.patch_size) ** 2
    return Tower(
        stem=_convolution(patches, config.patch_size, 3, config.width),
        rest=sum(_swin_stage(stage) for stage in stages) + 2 * width * config.num_classes,
        width=width,
    )


def _swin_stage(stage: StageConfig) -> int:
    positions, width = stage.map_side**2, stage.width
    merging = 2 * positions * (2 * width) * width if stage.merge else 0
    mlp = 2 * positions * 2 * width * stage.mlp_dim
    blocks = 0
    for block in range(stage.depth):
        windows = stage.windows((stage.map_side, stage.map_side), shifted=block % 2 == 1)
        length = math.prod(windows.size)
        padded = length * math.prod(windows.counts)  # windows at the border are filled up
        blocks += mlp + 2 * padded * (4 * width * width + 2 * length * width)
    return merging + blocks


# --- ResNet ---------------------------------------------------------------------------------------


def _resnet(config: ResNetConfig) -> Tower:
    side = _half(config.image_size)
    width = EXPANSION * config.width << (NUM_STAGES - 1)
    stages = _bottlenecks(config.depths, config.width, _half(side), antialias=False)
    return Tower(
        stem=_convolution(side**2, 7, 3, config.width),
        rest=stages + 2 * width * config.num_classes,
        width=width,
    )


def _clip_resnet(config: CLIPResNetConfig) -> Tower:
    side, width = config.image_size // 2, config.width
    stem_rest = _convolution(side**2, 3, width // 2, width // 2 + width)
    stages = _bottlenecks(config.depths, width, side // 2, antialias=True)
    channels, tokens = config.channels, 1 + (config.image_size // REDUCTION) ** 2
    # Keys and values of all positions; the query and the result of one.
    pool = tokens * (2 * channels**2 + 2 * channels) + channels * (channels + config.embed_dim)
    return Tower(
        stem=_convolution(side**2, 3, 3, width // 2),
        rest=stem_rest + stages + 2 * pool,
        width=config.embed_dim,
    )


def _bottlenecks(depths: tuple[int, ...], width: int, side: int, *, antialias: bool) -> int:
    """All stages.

    Args:
        depths: bottlenecks of each stage.
        width: inner channels of the first stage; the stem has as many.
        side: of the first stage's map.
        antialias: whether the 3x3 convolution comes before the map is halved (CLIP).
    """
    total, channels = 0, width
    for stage, depth in enumerate(depths):
        inner, outer = width << stage, EXPANSION * width << stage
        for block in range(depth):
            halves = stage > 0 and block == 0
            out = _half(side) if halves else side
            total += _convolution(side**2, 1, channels, inner)
            total += _convolution((side if antialias else out) ** 2, 3, inner, inner)
            total += _convolution(out**2, 1, inner, outer)
            if block == 0:  # the shortcut
                total += _convolution(out**2, 1, channels, outer)
            side, channels = out, outer
    return total


def _half(side: int) -> int:
    """Side of a map after stride 2 with even padding."""
    return -(-side // 2)


def _convolution(positions: int, size: int, channels_in: int, channels_out: int) -> int:
    return 2 * positions * size**2 * channels_in * channels_out


_TOWERS: dict[type, Callable[[Any], Tower]] = {
    ViTConfig: _vit,
    SwinConfig: _swin,
    ResNetConfig: _resnet,
    CLIPResNetConfig: _clip_resnet,
}
