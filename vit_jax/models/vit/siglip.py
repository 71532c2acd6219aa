"""Image towers of SigLIP and SigLIP 2, which timm publishes on their own."""

import dataclasses
from typing import Any

from vit_jax.inputs import NAFLEX, ImageInputs
from vit_jax.models.names import with_tags
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.model import ViTConfig
from vit_jax.models.vit.zoo import BASE, LARGE, SO400M, SO400M_MLP, Sizes, vit

# Tschannen et al. 2025, "SigLIP 2", table 1.
GIANT_OPT: Sizes = (1536, 40, 16)
# Name -> sizes, patch size, image size, MLP: Zhai et al. 2023, Tschannen et al. 2025, and the
# checkpoints that big_vision lists. open_clip and timm have So400m/14 at 378 px as well.
TOWERS: dict[str, tuple[Sizes, int, int, int]] = {
    "b32_256": (BASE, 32, 256, 3072),
    "b16": (BASE, 16, 224, 3072),
    "b16_256": (BASE, 16, 256, 3072),
    "b16_384": (BASE, 16, 384, 3072),
    "b16_512": (BASE, 16, 512, 3072),
    "l16_256": (LARGE, 16, 256, 4096),
    "l16_384": (LARGE, 16, 384, 4096),
    "l16_512": (LARGE, 16, 512, 4096),
    "so400m14": (SO400M, 14, 224, SO400M_MLP),
    "so400m14_378": (SO400M, 14, 378, SO400M_MLP),
    "so400m14_384": (SO400M, 14, 384, SO400M_MLP),
    "so400m16_256": (SO400M, 16, 256, SO400M_MLP),
    "so400m16_384": (SO400M, 16, 384, SO400M_MLP),
    "so400m16_512": (SO400M, 16, 512, SO400M_MLP),
    "gopt16_256": (GIANT_OPT, 16, 256, 6144),
    "gopt16_384": (GIANT_OPT, 16, 384, 6144),
}
# big_vision trained with the tanh form of GELU, which transformers uses. timm, and open_clip with
# it, run the towers that came first with the exact form.
_EXACT_IN_TIMM = {"b16", "b16_256", "b16_384", "b16_512", "l16_256", "l16_384"} | {
    "so400m14", "so400m14_378", "so400m14_384"
}  # fmt: skip


def timm_activation(name: str) -> str:
    """Returns the GELU with which timm runs a tower.

    Args:
        name: key of `TOWERS`.
    """
    return "gelu" if name in _EXACT_IN_TIMM else "gelu_tanh"


def siglip_tower(name: str, activation: str) -> ViTConfig:
    """Builds an image tower: attention pooling, no class token.

    Args:
        name: key of `TOWERS`.
        activation: "gelu_tanh" or "gelu", which the library decides, not the model.
    """
    sizes, patch_size, image_size, mlp_dim = TOWERS[name]
    return vit(
        sizes,
        patch_size,
        mlp_dim=mlp_dim,
        activation=activation,
        image_size=image_size,
        drop_remainder=image_size % patch_size > 0,
        class_token=False,
        pool="map",
        norm_epsilon=1e-6,
        weight_init="xavier",
    )


def naflex_tower(name: str) -> ViTConfig:
    """Builds an image tower of SigLIP 2 NaFlex (Tschannen et al. 2025, section 2.4.2).

    Its positions are a table of 16 x 16, which is resized for each image. `image_size` is a budget:
    an image has at most as many patches as one of this size.

    Args:
        name: key of `TOWERS`, of 256 px.
    """
    tower = siglip_tower(name, "gelu_tanh")
    return dataclasses.replace(
        tower, position_grid=tower.grid, position_resize="bilinear_antialias"
    )


# Preprocessing of NaFlex models.
NAFLEX_INPUTS = ImageInputs(resize=NAFLEX, interpolation="bilinear")
# Name of a NaFlex model without its library -> name of its tower at a fixed size.
NAFLEX_TOWERS = {"b16_naflex": "b16_256", "so400m16_naflex": "so400m16_256"}


def _timm(name: str) -> tuple[str, str]:
    """A tower's name in timm, and the registered one."""
    sizes, patch_size, image_size, _ = TOWERS[name]
    names: dict[Any, str] = {
        BASE: "base", LARGE: "large", SO400M: "so400m", GIANT_OPT: "giantopt"
    }  # fmt: skip
    return f"vit_{names[sizes]}_patch{patch_size}_siglip_{image_size}", f"timm_siglip_{name}"


MODELS: dict[str, ModelSpec] = {
    f"timm_siglip_{name}": ModelSpec(
        architecture=siglip_tower(name, timm_activation(name)),
        inputs=ImageInputs(resize="squash"),
    )
    for name in TOWERS
} | {
    f"timm_siglip2_{name}": ModelSpec(architecture=naflex_tower(tower), inputs=NAFLEX_INPUTS)
    for name, tower in NAFLEX_TOWERS.items()
}
_NAFLEX = {
    "naflexvit_base_patch16_siglip": "timm_siglip2_b16_naflex",
    "naflexvit_so400m_patch16_siglip": "timm_siglip2_so400m16_naflex",
}
ALIASES: dict[str, str] = {
    **with_tags(dict(map(_timm, TOWERS)), "webli", "v2_webli", "webli_i18n"),
    **with_tags(_NAFLEX, "v2_webli"),
}
