"""Patch embeddings of any size: PI-resize against NumPy float64, and ViTs of any patch size."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax import create_model
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.patch_embedding import PatchEmbedding, resize_kernel
from vit_jax.models.layers.positions import resize_positions
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained import native

FLEXIBLE = ViTConfig(
    image_size=24,
    patch_size=12,
    kernel_size=6,
    position_grid=(3, 3),
    position_resize="bilinear_antialias",
    prefix_positions=False,
    width=8,
    depth=1,
    num_heads=2,
    mlp_dim=16,
)


def resize_matrix(old: int, new: int) -> np.ndarray:
    """B: bilinear resize of flat patches, float64, from the images of the basis vectors."""
    basis = np.eye(old * old).reshape(-1, old, old)
    resized = [cv2.resize(x, (new, new), interpolation=cv2.INTER_LINEAR) for x in basis]
    return np.stack(resized).reshape(old * old, -1).T


@pytest.fixture
def kernel():
    return np.random.default_rng(0).normal(size=(6, 6, 3, 5))


@pytest.mark.parametrize("side", [3, 4, 6, 8, 12, 15])
def test_resized_kernel_is_that_of_the_paper(kernel, side):
    pseudo_inverse = np.linalg.pinv(resize_matrix(6, side).T)
    expected = (pseudo_inverse @ kernel.reshape(36, -1)).reshape(side, side, 3, 5)
    found = resize_kernel(jnp.asarray(kernel, jnp.float32), side)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("side", [8, 12, 15])
def test_tokens_of_enlarged_patches_are_unchanged(kernel, side):
    patch = np.random.default_rng(1).normal(size=(36, 3))
    enlarged = resize_matrix(6, side) @ patch
    found = resize_kernel(jnp.asarray(kernel, jnp.float32), side)
    found = np.einsum("pc,pcd->d", enlarged, np.asarray(found, np.float64).reshape(-1, 3, 5))
    np.testing.assert_allclose(found, np.einsum("pc,pcd->d", patch, kernel.reshape(36, 3, 5)),
                               atol=1e-5)  # fmt: skip


def random_params(architecture: ViTConfig):
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda x: rng.normal(scale=0.3, size=x.shape).astype(np.float32),
        ModelDef(architecture).shapes(),
    )


@pytest.mark.parametrize(
    ("side", "grid"), [(4, (6, 6)), pytest.param(12, (2, 2), marks=pytest.mark.release)]
)
def test_any_patch_size_is_a_plain_vit(tmp_path, side, grid):
    """A model of any patch size gives the features of the plain ViT that is made from it."""
    params, path = random_params(FLEXIBLE), tmp_path / "flexible.safetensors"
    native.save(path, params, ModelSpec(architecture=FLEXIBLE, inputs=ImageInputs()))
    images = np.random.default_rng(3).normal(size=(2, 24, 24, 3)).astype(np.float32)
    flexible = create_model(weights=path, patch_size=side)
    assert flexible.params["patch_embed"]["kernel"].shape == (6, 6, 3, 8)
    plain = create_model(weights=path, patch_size=side, kernel_size=None, position_grid=None)
    assert plain.params["patch_embed"]["kernel"].shape == (side, side, 3, 8)
    positions = jnp.asarray(params["positions"])
    expected = resize_positions(positions, (3, 3), grid, 0, "bilinear_antialias")
    np.testing.assert_allclose(plain.params["positions"], expected, atol=1e-6)
    np.testing.assert_allclose(plain(images), flexible(images), atol=1e-5)


def test_fine_tuning_of_a_vit_with_other_patches_resizes_its_kernel(kernel):
    old = ViTConfig(image_size=24, patch_size=6)
    new = dataclasses.replace(old, patch_size=4)
    found = new.adapt("patch_embed/kernel", jnp.asarray(kernel, jnp.float32), old)
    np.testing.assert_array_equal(found, resize_kernel(jnp.asarray(kernel, jnp.float32), 4))


@pytest.mark.parametrize("use_bias", [True, False])
def test_patches_of_naflex_are_embedded_as_those_of_images(use_bias):
    options = {"kernel_side": 6, "use_bias": use_bias, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    layer = PatchEmbedding(4, 5, **options)
    images = np.random.default_rng(4).normal(size=(2, 8, 12, 3)).astype(np.float32)
    patches = images.reshape(2, 2, 4, 3, 4, 3).swapaxes(2, 3).reshape(2, 6, 48)
    found = layer.embed_patches(jnp.asarray(patches)).reshape(2, 2, 3, 5)
    np.testing.assert_allclose(found, layer(jnp.asarray(images)), atol=1e-5)


def test_sizes_that_cannot_be():
    with pytest.raises(UserError, match="kernel_size=0: expected 1 px or more"):
        ViTConfig(kernel_size=0)
