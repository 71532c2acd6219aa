"""Registered models: exact parameter counts, none missing, errors that name what is valid."""

import jax
import pytest

from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.functional import ModelDef

# Published counts: ViT of timm, CLIP of OpenAI as open_clip counts them.
PARAMETER_COUNTS = {
    "clip_vit_emoji": None,  # ours: counted by hand below
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_b32": 88_224_232,
    "vit_b16": 86_567_656,
    "vit_l16": 304_326_632,
    "vit_h14": 632_045_800,
    "clip_vit_b32": 151_277_313,
    "clip_vit_b16": 149_620_737,
    "clip_vit_l14": 427_616_513,
    "clip_vit_l14_336": 427_944_193,
}


def count(name: str) -> int:
    spec = registry.model_spec(name)
    return sum(x.size for x in jax.tree.leaves(ModelDef(spec.family, spec.architecture).shapes()))


def test_every_registered_model_has_a_published_count():
    assert set(PARAMETER_COUNTS) == set(registry.list_models())


@pytest.mark.parametrize("name", [n for n, c in PARAMETER_COUNTS.items() if c])
def test_parameter_count(name):
    assert count(name) == PARAMETER_COUNTS[name]


def test_text_tower_parameter_count():
    """CLIP's text tower by hand: table, positions, 12 blocks, final norm, projection."""
    spec = registry.model_spec("clip_vit_b32")
    shapes = ModelDef(spec.family, spec.architecture).shapes()
    d, mlp = 512, 2048
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * mlp + mlp) + (mlp * d + d)
    expected = 49408 * d + 77 * d + 12 * block + 2 * d + d * 512
    tower = {"text": shapes["text"], "projection": shapes["text_projection"]}
    assert sum(x.size for x in jax.tree.leaves(tower)) == expected


def test_emoji_model_by_hand():
    architecture = registry.model_spec("clip_vit_emoji").architecture
    image, text, joint = architecture.image, architecture.text, architecture.embed_dim

    def stack(c):
        d, m = c.width, c.mlp_dim
        return c.depth * (4 * d + 3 * d * d + 3 * d + d * d + d + 2 * d * m + m + d) + 2 * d

    tokens = (image.image_size // image.patch_size) ** 2 + (image.pool == "class")
    expected = (
        image.patch_size**2 * 3 * image.width
        + image.width * image.patch_bias
        + image.width * (image.pool == "class")
        + tokens * image.width
        + 2 * image.width * image.pre_norm
        + stack(image)
        + text.vocab_size * text.width
        + text.context_length * text.width
        + stack(text)
        + (image.width + text.width) * joint
        + 1
    )
    assert count("clip_vit_emoji") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 3}, "did you mean 'model.width'"),
        ({"depth": "12"}, "model.depth='12': expected"),
        ({"pool": "max"}, "pool='max': expected one of class, mean"),
        ({"patch_size": 15}, "patch_size=15 does not divide image_size=224"),
        ({"num_heads": 7}, "num_heads=7 does not divide width=768"),
        ({"patch_dropout": 1.0}, r"expected a share in \[0, 1\)"),
    ],
)
def test_wrong_architecture(change, message):
    with pytest.raises(UserError, match=message):
        registry.parse(registry.ViTConfig, change)


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'clip_vit_b32'"):
        registry.model_spec("clip_vit_b_32")
    with pytest.raises(UserError, match="unknown remat policy 'ful'; did you mean 'full'"):
        ModelDef("vit", {}, remat="ful")
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        ModelDef("vit", {}, dtype="bfloat")
