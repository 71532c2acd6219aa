"""Floating-point operations of a training step, counted twice: by formula and from the trace.

A multiplication and an addition are two operations. Only matmuls and convolutions count, as is the
field's habit (PaLM, Chowdhery et al. 2022, appendix B): on accelerators the rest is limited by
memory. Attention counts in full, causal or not. What rematerialisation repeats is no model FLOP.
"""

import math
from typing import Any

from vit_jax.models.clip import CLIPConfig
from vit_jax.models.text import TextConfig
from vit_jax.models.vit import ViTConfig

# One product forward; backward one for the gradient of each factor.
FORWARD_AND_BACKWARD = 3


def training_flops(architecture: Any, batch_size: int) -> int | None:
    """Model FLOPs of a step on a global batch, from the architecture alone.

    Args:
        architecture: a family's config dataclass.
        batch_size: B, examples; a contrastive model compares all B x B pairs.

    Returns:
        None for a family without a formula here.
    """
    if isinstance(architecture, ViTConfig):
        return batch_size * vit_training_flops(architecture)
    if not isinstance(architecture, CLIPConfig) or not isinstance(architecture.image, ViTConfig):
        return None
    image, text, joint = architecture.image, architecture.text, architecture.embed_dim
    projected = image.width * architecture.image_projection + text.width
    projections = 2 * projected * joint * FORWARD_AND_BACKWARD
    towers = vit_training_flops(image) + text_training_flops(text)
    loss = 2 * batch_size**2 * joint * FORWARD_AND_BACKWARD
    return batch_size * (towers + projections) + loss


def vit_training_flops(config: ViTConfig) -> int:
    """FLOPs of an image tower forward and backward, a picture."""
    patches = (config.image_size // config.patch_size) ** 2
    # Pictures need no gradient, so the patch embedding has one product less.
    patch_embed = 2 * patches * 3 * config.patch_size**2 * config.width * 2
    tokens = config.num_prefix + patches_kept(patches, config.patch_dropout)
    heads = 2 * config.width * config.num_classes * (1 + config.distillation)
    pool = _map_head(config, tokens) if config.pool == "map" else 0
    return patch_embed + FORWARD_AND_BACKWARD * (_blocks(config, tokens) + pool + heads)


def _map_head(config: ViTConfig, tokens: int) -> int:
    """FLOPs of attention pooling forward: keys and values of all tokens, all else of one."""
    width = config.width
    one_token = 2 * width * width + 2 * width * config.mlp_dim
    return 2 * (one_token + tokens * (2 * width * width + 2 * width))


def patches_kept(patches: int, dropout: float) -> int:
    """Patches that patch dropout leaves in training."""
    return max(1, round(patches * (1 - dropout))) if dropout else patches


def text_training_flops(config: TextConfig) -> int:
    """FLOPs of a text tower forward and backward, a caption. Looking up an embedding is none."""
    return FORWARD_AND_BACKWARD * _blocks(config, config.context_length)


def _blocks(config: ViTConfig | TextConfig, tokens: int) -> int:
    """FLOPs of all blocks forward: four D x D projections, the MLP's two, attention's two."""
    width = config.width
    weights = 4 * width * width + 2 * width * config.mlp_dim
    attention = 2 * tokens * width
    return config.depth * 2 * tokens * (weights + attention)


def traced_flops(jaxpr: Any) -> int:
    """FLOPs of everything that a jaxpr does, summed over all devices.

    Loops count as often as they run; of a `cond` the costlier branch; a `while` of unknown length
    once. Repeated work (rematerialisation) counts again.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(result) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(result) * math.prod(kernel) // features
    inner = [traced_flops(x) for x in _inner_jaxprs(params)]
    if name == "cond":
        return max(inner, default=0)
    return _repetitions(name, params) * sum(inner)


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    for value in params.values():
        values = value if isinstance(value, list | tuple) else [value]
        found += [v for v in values if hasattr(getattr(v, "jaxpr", v), "eqns")]
    return found


def _repetitions(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # what is inside is the work of one device
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1
