"""Microsoft's original Swin checkpoints.

Their code is no package. timm documents the difference to its own names in `checkpoint_filter_fn`
of its Swin, which reads the original files; the renaming here follows it, backwards.
"""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.reference import format_of, relative_error, split_reference
from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef
from vit_jax.models.swin.model import SwinConfig
from vit_jax.models.swin.windows import resize_bias_table
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

# As in tests/fixtures/generators/make_swin.py.
CONFIG = SwinConfig(
    image_size=32, width=8, depths=(5, 2), num_heads=(2, 4), window_size=4, num_classes=5
)
BUFFERS = ("relative_position_index", "attn_mask")


@pytest.fixture
def reference(tmp_path):
    """Weights under the original names, and outputs of timm."""
    path, expected = split_reference("swin_tiny.safetensors", tmp_path)
    file = open_weights(path)

    def original(key):
        key = re.sub(
            r"layers.(\d+).downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key
        )
        return key.replace("head.fc.", "head.")

    path = tmp_path / "original.safetensors"
    write_tensors(path, {original(key): file.read(key) for key in file})
    return path, expected


@pytest.fixture(scope="module")
def model():
    return ModelDef(CONFIG)


def test_same_activations(reference, model):
    path, expected = reference
    assert format_of(path) == "swin"
    module = model.bind(load_weights(path, model))
    images = expected["images"].astype(np.float32)
    found = dict(zip(("stage_0", "stage_1"), module.features(images, (0, 1)), strict=True))
    found |= {"pooled": module.encode_image(images), "logits": module(images)}
    errors = {key: relative_error(np.asarray(x), expected[key]) for key, x in found.items()}
    assert max(errors.values()) < 1e-5, errors


def test_round_trip_is_exact_and_adds_the_buffers(reference, model, tmp_path):
    """The buffers are ignored on loading, also those of another resolution."""
    path, _ = reference
    params = load_weights(path, model)
    save_weights(params, model, tmp_path / "out.safetensors", "swin")
    before, after = open_weights(path), open_weights(tmp_path / "out.safetensors")
    assert format_of(after) == "swin"
    for key in before:
        np.testing.assert_array_equal(after.read(key), before.read(key), strict=True)
    added = {key: after.shape(key) for key in after if key not in before}
    indices = {
        f"layers.{i}.blocks.{j}.attn.relative_position_index": (16, 16)
        for i, depth in enumerate(CONFIG.depths)
        for j in range(depth)
    }
    # The second stage is no larger than its window and shifts nothing.
    masks = {f"layers.0.blocks.{j}.attn_mask": (4, 16, 16) for j in (1, 3)}
    assert added == indices | masks
    index = after.read("layers.0.blocks.0.attn.relative_position_index")
    assert index.dtype == np.int64
    assert (index[0, 0], index[0, -1], index[-1, 0]) == (24, 0, 48)
    larger = ModelDef(dataclasses.replace(CONFIG, image_size=64))
    found = load_weights(tmp_path / "out.safetensors", larger)
    np.testing.assert_array_equal(found["head"]["kernel"], params["head"]["kernel"])


def test_bias_tables_are_stretched_to_the_models_window(reference):
    path, _ = reference
    larger = ModelDef(dataclasses.replace(CONFIG, image_size=64, window_size=6))
    tables = load_weights(path, larger)["stage1"]["blocks"]["attention"]["bias_table"]
    table = open_weights(path).read("layers.1.blocks.1.attn.relative_position_bias_table")
    expected = resize_bias_table(jnp.asarray(table), (4, 4), (6, 6), "bicubic")
    np.testing.assert_array_equal(tables[1], expected)


def test_what_does_not_fit_is_listed(reference, model, tmp_path):
    file = open_weights(reference[0])
    tensors = {key: file.read(key) for key in file if key != "head.bias"}
    tensors["odd"] = np.zeros(2, np.float32)
    table = "layers.1.blocks.0.attn.relative_position_bias_table"
    tensors[table] = tensors[table][1:]
    write_tensors(tmp_path / "odd.safetensors", tensors)
    with pytest.raises(UserError) as caught:
        load_weights(tmp_path / "odd.safetensors", model)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: head.bias (5,)",
        "  unexpected: odd (2,)",
        f"  another shape: {table}: expected (49, 4), found (48, 4) (weights_size=(height, "
        "width) is the size of the images of the weights)",
    ]
