"""CLIPSeg under the names of its authors (CLIPDensePredT), both ways."""

import jax
import numpy as np
import pytest

from tests.weights.reference import format_of, split_reference
from tests.weights.transformers_models import ARCHITECTURES
from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

# Name of the authors -> name of transformers, as in the latter's conversion script.
NAMES = {
    "film_mul.weight": "decoder.film_mul.weight",
    "film_add.bias": "decoder.film_add.bias",
    "reduces.1.weight": "decoder.reduces.1.weight",
    "blocks.0.linear1.bias": "decoder.layers.0.mlp.fc1.bias",
    "blocks.1.linear2.weight": "decoder.layers.1.mlp.fc2.weight",
    "blocks.1.norm1.weight": "decoder.layers.1.layer_norm1.weight",
    "blocks.0.norm2.bias": "decoder.layers.0.layer_norm2.bias",
    "blocks.0.self_attn.out_proj.weight": "decoder.layers.0.self_attn.out_proj.weight",
    "trans_conv.0.weight": "decoder.transposed_convolution.0.weight",
    "trans_conv.2.weight": "decoder.transposed_convolution.2.weight",
    "trans_conv.4.bias": "decoder.transposed_convolution.4.bias",
    "clip_model.positional_embedding": "clip.text_model.embeddings.position_embedding.weight",
    "clip_model.visual.conv1.weight": "clip.vision_model.embeddings.patch_embedding.weight",
    "clip_model.logit_scale": "clip.logit_scale",
}


def test_same_weights_as_transformers(tmp_path):
    theirs, _ = split_reference("transformers_clipseg_refined.safetensors", tmp_path)
    model = ModelDef(ARCHITECTURES["clipseg_refined"])
    params, file = load_weights(theirs, model), open_weights(theirs)
    path = tmp_path / "authors.safetensors"
    save_weights(params, model, path, "clipseg")
    assert format_of(path) == "clipseg"
    written = open_weights(path)
    for ours, name in NAMES.items():
        np.testing.assert_array_equal(written.read(ours), file.read(name), strict=True)
    for kind in ("weight", "bias"):
        layer = "decoder.layers.1.self_attn"
        parts = [file.read(f"{layer}.{part}_proj.{kind}") for part in "qkv"]
        fused = written.read(f"blocks.1.self_attn.in_proj_{kind}")
        np.testing.assert_array_equal(fused, np.concatenate(parts), strict=True)

    tensors = {key: written.read(key) for key in written}
    unused = {"reduce.weight": np.zeros((8, 16), np.float32)}
    unused["clip_model.vocab_size"] = np.array(50)
    unused["model.conv1.weight"] = tensors["clip_model.visual.conv1.weight"]
    write_tensors(tmp_path / "whole.safetensors", tensors | unused)
    again = load_weights(tmp_path / "whole.safetensors", model)
    jax.tree.map(np.testing.assert_array_equal, again, params)

    decoder = {key: x for key, x in tensors.items() if not key.startswith("clip_model.")}
    write_tensors(tmp_path / "decoder.safetensors", decoder)
    with pytest.raises(UserError, match=r"holds the decoder of CLIPSeg alone.*clip_model\.\*"):
        load_weights(tmp_path / "decoder.safetensors", model)
