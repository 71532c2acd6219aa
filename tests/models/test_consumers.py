"""Outputs of CLIP's towers for other systems, against hidden states of transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.reference import relative_error, split_reference
from tests.weights.transformers_models import CLIP
from vit_jax.models.clip import consumers
from vit_jax.models.definition import ModelDef
from vit_jax.pretrained.weight_files import load_weights
from vit_jax.weights.containers.reading import open_weights


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A CLIP with three image blocks and two text blocks, and the outputs of each."""
    folder = tmp_path_factory.mktemp("clip")
    path, computed = split_reference("transformers_clip.safetensors", folder)
    model = ModelDef(CLIP)
    return model.bind(load_weights(path, model)), computed, open_weights(path)


def test_llava(reference):
    """`hidden_states[-2]` without the class token."""
    model, computed, _ = reference
    found = consumers.llava_features(model, jnp.asarray(computed["images"]))
    assert relative_error(np.asarray(found), computed["image_block_1"][:, 1:]) < 1e-5


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_stable_diffusion(reference, clip_skip):
    """`hidden_states[-1 - clip_skip]`, and the same after the final norm."""
    model, computed, file = reference
    tokens, states = computed["tokens"], computed[f"text_block_{1 - clip_skip}"]
    found = consumers.stable_diffusion_states(model, tokens, clip_skip=clip_skip, final_norm=False)
    assert relative_error(np.asarray(found), states) < 1e-5
    weight, bias = (file.read(f"text_model.final_layer_norm.{key}") for key in ("weight", "bias"))
    centred = states - states.mean(-1, keepdims=True)
    normalized = centred / np.sqrt(states.var(-1, keepdims=True) + 1e-5) * weight + bias
    found = consumers.stable_diffusion_states(model, tokens, clip_skip=clip_skip)
    assert relative_error(np.asarray(found), normalized) < 1e-5


def test_sdxl(reference):
    """Penultimate states of both towers side by side, and the embedding of the second."""
    model, computed, _ = reference
    tokens = computed["tokens"]
    states, pooled = consumers.sdxl_states(model, model, tokens, tokens)
    both = np.concatenate([computed["text_block_0"]] * 2, axis=-1)
    assert relative_error(np.asarray(states), both) < 1e-5
    normalized = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
    assert relative_error(np.asarray(normalized), computed["text_normalized"]) < 1e-5
