"""Checkpoints of scenic's OWL-ViT and OWLv2, with the names that transformers' scripts convert.

The tensors of a small model of transformers are renamed and reshaped as in its conversion scripts
(owlvit/convert_owlvit_original_flax_to_hf.py, owlv2/convert_owlv2_to_hf.py), in reverse.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util

from tests.weights.reference import split_reference
from tests.weights.transformers_models import ARCHITECTURES
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.spec import ModelSpec
from vit_jax.pretrained.identification import identify
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights

HEADS = {"vision": 2, "text": 3}
# Part of a name in transformers -> in scenic.
PARTS = {
    "vision_model.embeddings.class_embedding": "visual/class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual/conv1/kernel",
    "vision_model.embeddings.position_embedding.weight": "visual/positional_embedding",
    "vision_model.pre_layernorm": "visual/ln_pre",
    "vision_model.post_layernorm": "visual/ln_post",
    "vision_model.encoder.layers.": "visual/transformer/resblocks.",
    "text_model.embeddings.token_embedding.weight": "text/token_embedding/embedding",
    "text_model.embeddings.position_embedding.weight": "text/positional_embedding",
    "text_model.final_layer_norm": "text/ln_final",
    "text_model.encoder.layers.": "text/transformer/resblocks.",
    "text_projection": "text/text_projection",
    ".self_attn.q_proj": "/attn/query",
    ".self_attn.k_proj": "/attn/key",
    ".self_attn.v_proj": "/attn/value",
    ".self_attn.out_proj": "/attn/out",
    ".mlp.fc1": "/mlp/c_fc",
    ".mlp.fc2": "/mlp/c_proj",
    ".layer_norm1.weight": "/{first}/scale",
    ".layer_norm1.bias": "/{first}/bias",
    ".layer_norm2.weight": "/{second}/scale",
    ".layer_norm2.bias": "/{second}/bias",
}
TOP = {"layer_norm": "backbone/merged_class_token", "box_head": "obj_box_head"}


def scenic_name(key, kind, norms):
    if key.startswith(f"{kind}."):
        key = f"backbone/clip/{key.removeprefix(f'{kind}.')}"
        for theirs, ours in PARTS.items():
            key = key.replace(theirs, ours.format(**norms))
    else:
        name, _, rest = key.partition(".")
        key = f"{TOP.get(name, name)}/{rest}".replace(".", "/").replace("dense", "Dense_")
    is_norm = any(part in key for part in ("ln_", "merged_class_token"))
    return key.replace(".weight", "/weight").replace(".bias", "/bias").replace(
        "/weight", "/scale" if is_norm else "/kernel"
    )  # fmt: skip


def scenic_tensor(key, value):
    """Kernels are transposed, and those of attention have a dimension of heads."""
    if "patch_embedding" in key:
        return value.transpose(2, 3, 1, 0)
    if key.endswith("weight") and value.ndim == 2 and "embedding" not in key:
        value = value.T
    if "self_attn" in key:
        heads = HEADS["vision" if "vision" in key else "text"]
        if "out_proj.weight" in key:
            value = value.reshape(heads, -1, value.shape[-1])
        elif "out_proj" not in key:
            value = value.reshape(*value.shape[:-1], heads, -1)
    return value


@pytest.fixture(params=["owlvit", "owlv2"])
def checkpoint(request, tmp_path):
    """A checkpoint as scenic writes it, and the parameters that it holds."""
    kind, architecture = request.param, ARCHITECTURES[request.param]
    path, _ = split_reference(f"transformers_{kind}.safetensors", tmp_path)
    file, early = open_weights(path), kind == "owlvit"
    first, second = ("ln_1", "ln_2") if early else ("ln_0", "ln_1")
    norms = {"first": first, "second": second}
    tensors = {
        scenic_name(key, kind, norms): scenic_tensor(key, file.read(key))
        for key in file
        if "visual_projection" not in key
    }
    tree = traverse_util.unflatten_dict(tensors, sep="/")
    state = {"optimizer": {"target": tree}} if early else {"params": tree, "opt_state": {"0": {}}}
    out = tmp_path / "checkpoint_1"
    out.write_bytes(serialization.msgpack_serialize({**state, "global_step": 1}))
    return out, architecture, load_weights(path, ModelDef(architecture))


def test_parameters_of_scenics_checkpoints(checkpoint, tmp_path):
    path, architecture, expected = checkpoint
    spec = ModelSpec(architecture=architecture, inputs=ImageInputs(resize="squash"))
    assert identify(path, spec).source.architecture == dataclasses.replace(
        architecture,
        image=dataclasses.replace(architecture.image, position_resize="bilinear_corners"),
        head_activation="gelu_tanh",
    )
    settled = dataclasses.replace(architecture, head_activation="gelu_tanh")
    found = load_weights(path, ModelDef(settled))
    assert not found["image_projection"]["kernel"].any()
    expected["image_projection"] = found["image_projection"]
    jax.tree.map(np.testing.assert_array_equal, found, expected)

    save_weights(found, ModelDef(settled), tmp_path / "out.msgpack", "scenic")
    written, given = (open_weights(tmp_path / name) for name in ("out.msgpack", "checkpoint_1"))
    if architecture.objectness:  # the names of OWL-ViT's checkpoints are older
        assert set(written) == {*given, "params/backbone/clip/visual/proj/kernel"}
        for key in given:
            np.testing.assert_array_equal(written.read(key), given.read(key))
    with pytest.raises(UserError, match=r"'class', False, 'gelu_tanh'\); found .* 'gelu'\)"):
        save_weights(found, ModelDef(architecture), tmp_path / "out.msgpack", "scenic")


def test_damaged_checkpoints(tmp_path):
    content = serialization.msgpack_serialize({"params": {"x": np.ones(9)}})
    path = tmp_path / "x"
    path.write_bytes(content[:-5])
    with pytest.raises(UserError, match=r"x cannot be read as a checkpoint of Flax"):
        open_weights(path)
    path.write_bytes(serialization.msgpack_serialize({"step": 1}))
    with pytest.raises(UserError, match=r"expected a checkpoint of Flax with arrays; found none"):
        open_weights(path)
    path.write_bytes(serialization.msgpack_serialize({"params": {"x": np.ones(9)}}))
    assert open_weights(path).keys() == ["params/x"]
