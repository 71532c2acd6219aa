"""CLIPSeg: towers without a class token, images that are not square, padding, errors.

The activations of transformers are compared in tests/weights/test_transformers.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.clipseg.model import CLIPSegConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.vit.model import ViTConfig

STACK = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
CONFIG = CLIPSegConfig(
    image=ViTConfig(**STACK, image_size=16, patch_size=4, class_token=False, pool="mean"),
    text=TextConfig(**STACK, vocab_size=50, context_length=6),
    embed_dim=12,
    layers=(0, 1),
    reduced_width=8,
    decoder_heads=2,
    decoder_mlp_dim=16,
)
TOKENS = jnp.array([[[7, 49, 0, 0, 0, 0], [9, 8, 7, 49, 0, 0], [0] * 6]], jnp.int32)


def test_masks_of_a_tower_without_a_class_token():
    """Patches are placed as in NumPy; padding has the mask of zeros; one prompt serves all."""
    model = ModelDef(CONFIG)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.3, 0.3, x.shape), "f4"), model.shapes()
    )
    images = jnp.asarray(rng.normal(size=(2, 12, 20, 3)), jnp.float32)

    @jax.jit
    def compute(params):
        module = model.bind(params)
        tokens = jnp.concatenate([TOKENS, TOKENS])
        conditions = module.encode_text(TOKENS[0]).at[2].set(0)[None]
        states = module.decoder.states(module.features(images[:1], CONFIG.layers), conditions)
        return module(images, tokens), module.masks_of(images, conditions), states[-1]

    found, shared, last = compute(params)
    assert {name: x.shape for name, x in found.items()} == {
        "masks": (2, 3, 12, 20), "scores": (2, 3)
    }  # fmt: skip
    assert {x.dtype for x in found.values()} == {jnp.dtype("float32")}
    for name, value in found.items():
        np.testing.assert_allclose(value, shared[name], rtol=1e-4, atol=1e-4)

    output = params["decoder"]["output"]
    kernel, bias = (np.asarray(output[name], np.float64) for name in ("kernel", "bias"))
    expected = np.zeros((3, 12, 20))
    for prompt, states in enumerate(np.asarray(last, np.float64)):
        for patch, features in enumerate(states):
            row, column = divmod(patch, 5)
            square = np.einsum("c,klc->kl", features, kernel[..., 0]) + bias
            expected[prompt, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = square
    np.testing.assert_allclose(found["masks"][0], expected, rtol=1e-4, atol=1e-4)
    best = 1 / (1 + np.exp(-expected.max(axis=(1, 2))))
    np.testing.assert_allclose(found["scores"][0], best, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (0, 2)}, "layer 2 does not exist: this tower has 2 blocks"),
        ({"layers": (1, 0)}, r"layers=\(1, 0\): expected ascending indices"),
        ({"layers": ()}, r"layers=\(\): expected ascending indices"),
        ({"layers": (-1,)}, r"layers=\(-1,\): expected ascending indices"),
        ({"condition_block": 2}, "condition_block=2: expected one of the 2 blocks"),
        ({"decoder_heads": 3}, "decoder_heads=3 does not divide reduced_width=8"),
        ({"refined": True}, "expected image.patch_size=16 or refined=False; found 4"),
        ({"image": SwinConfig()}, "the image tower of CLIPSeg is a ViT; found SwinConfig"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)
