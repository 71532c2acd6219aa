"""CLIP's ResNet towers under OpenAI's names.

The image tower is open_clip's of `make_resnet.py`, the text tower that of `make_clip.py` with a
projection cut to the size of the image tower's outputs.
"""

import numpy as np
import pytest

from tests.weights.reference import format_of, relative_error, split_reference
from tests.weights.test_openai_clip import TEXT
from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.positions import resize_positions
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

# As in tests/fixtures/generators/make_resnet.py.
IMAGE = {"depths": (3, 2, 1, 1), "width": 4, "num_heads": 4, "embed_dim": 12}


def pair(image_size):
    image = CLIPResNetConfig(**IMAGE, image_size=image_size)
    return ModelDef(CLIPConfig(image=image, text=TEXT, embed_dim=12, image_projection=False))


@pytest.fixture
def reference(tmp_path):
    image_path, expected = split_reference("clip_resnet_tiny.safetensors", tmp_path)
    text_path, text = split_reference("clip_tiny.safetensors", tmp_path)
    image_file, text_file = open_weights(image_path), open_weights(text_path)
    tensors = {key: image_file.read(key) for key in image_file}
    tensors |= {key: text_file.read(key) for key in text_file if not key.startswith("visual.")}
    tensors["text_projection"] = np.ascontiguousarray(tensors["text_projection"][:, :12])
    write_tensors(tmp_path / "pair.safetensors", tensors)
    expected |= {"tokens": text["tokens"], "text_embedding": text["text_embedding"][:, :12]}
    return tmp_path / "pair.safetensors", expected


def test_same_activations(reference):
    path, expected = reference
    assert format_of(path) == "openai_clip"
    model = pair(64)
    clip = model.bind(load_weights(path, model))
    images = expected["images"].astype(np.float32)
    found = {
        "pooled": clip.encode_image(images),
        "text_embedding": clip.encode_text(expected["tokens"]),
    }
    stages = clip.features(expected["other_images"].astype(np.float32), range(4))
    found |= {f"stage_{i}": x for i, x in enumerate(stages)}
    errors = {key: relative_error(np.asarray(x), expected[key]) for key, x in found.items()}
    assert max(errors.values()) < 1e-5, errors


def test_round_trip_is_exact(reference, tmp_path):
    """Float16 is written as float32, and counters of batches as zero."""
    path, _ = reference
    model = pair(64)
    save_weights(load_weights(path, model), model, tmp_path / "out.safetensors", "openai_clip")
    before, after = open_weights(path), open_weights(tmp_path / "out.safetensors")
    assert set(after) == set(before)
    for key in before:
        if key.endswith("num_batches_tracked"):
            assert (after.dtype(key), after.read(key)) == (before.dtype(key), 0)
        else:
            expected = before.read(key).astype(np.float32)
            np.testing.assert_array_equal(after.read(key), expected, strict=True)


def test_positions_of_the_pool_are_resized(reference):
    path, _ = reference
    small, large = (load_weights(path, pair(s))["image"]["pool"]["positions"] for s in (64, 96))
    np.testing.assert_array_equal(large, resize_positions(small, (2, 2), (3, 3), 1))


def test_other_depths_are_listed(reference):
    path, _ = reference
    image = CLIPResNetConfig(**{**IMAGE, "depths": (2, 2, 1, 1)}, image_size=64)
    config = CLIPConfig(image=image, text=TEXT, embed_dim=12, image_projection=False)
    with pytest.raises(UserError) as caught:
        load_weights(path, ModelDef(config))
    lines = str(caught.value).splitlines()
    assert "tensors missing: 0, unexpected: 15, of another shape: 0" in lines[0]
    assert "  unexpected: visual.layer1.2.conv3.weight (16, 4, 1, 1)" in lines
