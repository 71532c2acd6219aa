"""Registered models: published parameter counts, round trips through JSON, errors."""

import json
import math

import jax
import pytest

from tests.models.parameter_counts import COUNTED, FAMILIES, PARAMETER_COUNTS
from vit_jax.components import parse
from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.models.vit.model import ViTConfig


def count(name: str) -> int:
    spec = registry.model_spec(name)
    model = ModelDef(spec.architecture)
    # The first step of training would be compiled for weak types, and the second one again.
    assert not any(x.weak_type for x in jax.tree.leaves(model.shapes()))
    sizes = jax.tree.map(lambda x, t: x.size if t else 0, model.shapes(), trainable(model))
    return sum(jax.tree.leaves(sizes))


def trainable(model: ModelDef):
    return model.metadata("trainable", True)


def test_every_registered_model_has_a_published_count():
    assert set(PARAMETER_COUNTS) == set(registry.model_names())


def in_release(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.release] if FAMILIES.fullmatch(name) and name not in COUNTED else []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=in_release(n)) for n, c in PARAMETER_COUNTS.items() if c]
)
def test_parameter_count(name):
    assert count(name) == PARAMETER_COUNTS[name]


def test_text_tower_parameter_count():
    """CLIP's text tower: token table, positions, 12 blocks, final norm, projection."""
    spec = registry.model_spec("clip_vit_b32")
    shapes = ModelDef(spec.architecture).shapes()
    d, mlp = 512, 2048
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * mlp + mlp) + (mlp * d + d)
    expected = 49408 * d + 77 * d + 12 * block + 2 * d + d * 512
    tower = {"text": shapes["text"], "projection": shapes["text_projection"]}
    assert sum(x.size for x in jax.tree.leaves(tower)) == expected


def test_emoji_model_parameter_count():
    architecture = registry.model_spec("clip_vit_emoji").architecture
    image, text, joint = architecture.image, architecture.text, architecture.embed_dim

    def stack(c):
        d, m = c.width, c.mlp_dim
        return c.depth * (4 * d + 3 * d * d + 3 * d + d * d + d + 2 * d * m + m + d) + 2 * d

    tokens = math.prod(image.grid) + image.class_token
    expected = (
        image.patch_size**2 * 3 * image.width
        + image.width * image.patch_bias
        + image.width * image.class_token
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
        ({"pool": "max"}, "unknown pool 'max'; did you mean 'map'"),
        ({"patch_size": 15}, r"patch_size=15 does not divide image_size=\(224, 224\)"),
        ({"num_heads": 7}, "num_heads=7 does not divide width=768"),
        ({"patch_dropout": 1.0}, r"expected a fraction in \[0, 1\)"),
    ],
)
def test_wrong_architecture(change, message):
    with pytest.raises(UserError, match=message):
        parse(ViTConfig, change, "model")


@pytest.mark.parametrize("name", registry.model_names())
def test_architecture_survives_json(name):
    """Configs and exported weights store architectures as JSON."""
    architecture = registry.model_spec(name).architecture
    plain = json.loads(json.dumps(registry.describe(architecture)))
    assert registry.parse_architecture(plain, "model") == architecture


def test_unknown_execution():
    with pytest.raises(UserError, match="unknown remat policy 'ful'; did you mean 'full'"):
        ModelDef(ViTConfig(), remat="ful")
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        ModelDef(ViTConfig(), dtype="bfloat")


# The towers that came before SigLIP 2.
EXACT = ("b16", "b16_256", "b16_384", "b16_512", "l16_256", "l16_384", "b16_256_i18n",
         "so400m14", "so400m14_378", "so400m14_384")  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "image", "text"),
    [
        ("siglip_", "gelu_tanh", "gelu_tanh"),
        ("siglip2_", "gelu_tanh", "gelu_tanh"),
        ("timm_siglip_", "gelu", None),
        ("openclip_siglip_", "gelu", "gelu"),
        ("openclip_siglip2_", "gelu", "gelu_tanh"),
    ],
)
def test_the_form_of_gelu_is_that_of_the_library(prefix, image, text):
    """timm, and so open_clip, has the exact form in the towers that came first."""
    names = [name for name in registry.model_names() if name.startswith(prefix)]
    assert len(names) >= 10
    for name in names:
        config = registry.model_spec(name).architecture
        expected = image if name.removeprefix(prefix) in EXACT else "gelu_tanh"
        assert getattr(config, "image", config).activation == expected, name
        assert text is None or config.text.activation == text, name
