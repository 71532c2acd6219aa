"""LLaVA, Qwen-VL and Stable Diffusion's text encoders at published sizes (pytest -m parity)."""

import shutil

import pytest

pytest.importorskip("transformers")

import jax
import numpy as np
import torch
import transformers as t
from PIL import Image
from safetensors.torch import load_file, save_file

import vit_jax
from tests.fixtures.generators.make_detection_inputs import smooth_image
from tests.fixtures.generators.make_qwen_vl import published, run
from tests.fixtures.generators.transformers_outputs import block_outputs, randomise
from tests.parity.live import check, random_images
from tests.parity.qwen_vl_reference import QwenVL
from tests.parity.test_inputs import SHAPES
from vit_jax.inputs import ImageInputs
from vit_jax.models.spec import CLIP_MEAN
from vit_jax.pretrained.weight_files import save_weights

pytestmark = pytest.mark.parity

VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
CAPTIONS = ["a photo of a cat", "two dogs on a red sofa, in the style of a woodcut", ""]
# Sizes of the published `text_encoder` and `text_encoder_2`.
H14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
BIGG = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20}
L14 = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
ENCODERS = {
    "stable_diffusion_1_text": (t.CLIPTextModel, {**L14, "num_hidden_layers": 12}),
    "stable_diffusion_2_text": (
        t.CLIPTextModel,
        {**H14, "num_hidden_layers": 23, "hidden_act": "gelu", "projection_dim": 512},
    ),
    "stable_diffusion_xl_text": (t.CLIPTextModel, {**L14, "num_hidden_layers": 12}),
    "stable_diffusion_xl_text_2": (
        t.CLIPTextModelWithProjection,
        {**BIGG, "num_hidden_layers": 32, "hidden_act": "gelu", "projection_dim": 1280},
    ),
}


def llava_outputs(model, images):
    """Outputs of all blocks of the tower, and the embeddings."""
    blocks = block_outputs(model.model.vision_tower.encoder.layers)
    with torch.no_grad():
        output = model.eval().get_image_features(images, return_dict=True)
    found = {f"block_{i}": x.numpy() for i, x in enumerate(blocks)}
    return found | {"embeddings": torch.stack(list(output.pooler_output)).numpy()}


@pytest.mark.parametrize(("name", "width"), [("llava_1_5_7b", 4096), ("llava_1_5_13b", 5120)])
def test_llava(name, width, tmp_path):
    """With a language model of one layer; the weights are in shards."""
    language = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "num_attention_heads": 32,
        "vocab_size": 128,
    }
    theirs = t.LlavaForConditionalGeneration(
        t.LlavaConfig(vision_config=VISION, text_config=language)
    )
    randomise(theirs)
    images = random_images(2, 336, 336, 3)
    in_torch = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = llava_outputs(theirs, in_torch)
    theirs.save_pretrained(tmp_path / "in", max_shard_size="400MB")
    del theirs
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    ours = vit_jax.create_model(name, weights=tmp_path / "in")
    blocks = ours.features(images, range(24))
    found = {f"block_{i}": x for i, x in enumerate(blocks)} | {"embeddings": ours(images)}
    check(f"{name}, in", found, expected)
    # The same memory in torch.
    embeddings = torch.from_dlpack(found["embeddings"])
    assert embeddings.data_ptr() == found["embeddings"].unsafe_buffer_pointer()

    path = tmp_path / "out" / "model.safetensors"
    save_weights(ours.params, ours.definition, path, "transformers")
    del ours, blocks
    shutil.copy(tmp_path / "in" / "config.json", tmp_path / "out")
    again, info = t.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    missing = [key for key in info["missing_keys"] if "language_model" not in key]
    assert set(missing) <= {"lm_head.weight"}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    check(f"{name}, out", llava_outputs(again, in_torch), expected)


def text_outputs(name, model, tokens):
    """What diffusers read: states for `clip_skip` 0 and 1, and pooled features."""
    base = getattr(model, "text_model", model)
    with torch.no_grad():
        output = model.eval()(input_ids=torch.from_numpy(tokens), output_hidden_states=True)
        if "xl" in name:
            states = {f"states_{n}": output.hidden_states[-(n + 2)] for n in (0, 1)}
        else:
            states = {
                f"states_{n}": base.final_layer_norm(output.hidden_states[-(n + 1)]) for n in (0, 1)
            }
            torch.testing.assert_close(states["states_0"], output.last_hidden_state)
    pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
    return {key: value.numpy() for key, value in states.items()} | {"pooled": pooled.numpy()}


@pytest.mark.parametrize("name", ENCODERS)
def test_text_encoder(name, tmp_path):
    kind, fields = ENCODERS[name]
    theirs = kind(t.CLIPTextConfig(**fields, bos_token_id=0, eos_token_id=2, pad_token_id=1))
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "in")
    ours = vit_jax.create_model(name, weights=tmp_path / "in")
    tokens = ours.tokenize(CAPTIONS)
    assert set(tokens[:, -1].tolist()) == {0 if name.endswith("2") or "_2_" in name else 49407}
    expected = text_outputs(name, theirs, tokens)
    del theirs
    found = {f"states_{n}": ours.text_states(tokens, clip_skip=n) for n in (0, 1)}
    check(f"{name}, in", found | {"pooled": ours.encode_text(tokens)}, expected)

    path = tmp_path / "out" / "model.safetensors"
    save_weights(ours.params, ours.definition, path, "transformers")
    del ours
    shutil.copy(tmp_path / "in" / "config.json", tmp_path / "out")
    again, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    check(f"{name}, out", text_outputs(name, again, tokens), expected)


@pytest.mark.parametrize("size", [(448, 448), (336, 560)], ids=str)
def test_qwen_vl(size, tmp_path):
    """Two blocks of the published tower, and the whole resampler."""
    theirs = QwenVL(
        positions=256,
        patch_size=14,
        patch_width=1664,
        depth=2,
        patch_heads=16,
        hidden=8192,
        side=16,
        width=4096,
        heads=32,
    )
    randomise(theirs)
    expected = {key: value.numpy() for key, value in run(theirs, *size, count=1).items()}
    images = expected.pop("images")
    save_file(published(theirs), tmp_path / "in.safetensors")
    ours = vit_jax.create_model("qwen_vl", weights=tmp_path / "in.safetensors", image={"depth": 2})

    def outputs(params):
        module = ours.definition.bind(params)
        blocks = module.features(images, range(2))
        grid = size[0] // 14, size[1] // 14
        found = {f"image_block_{i}": block for i, block in enumerate(blocks)}
        found["resampled"] = module.resampler(blocks[-1], grid)
        return found | {"embeddings": module(images)}

    images = jax.numpy.asarray(images)
    check("qwen_vl, in", jax.jit(outputs)(ours.params), expected)
    save_weights(ours.params, ours.definition, tmp_path / "out.safetensors", "qwen_vl")
    written, stored = (load_file(tmp_path / f"{name}.safetensors") for name in ("out", "in"))
    assert written.keys() == stored.keys()
    for key, value in stored.items():
        torch.testing.assert_close(written[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("pads", [False, True])
def test_preprocessing_of_llava(pads):
    """Within the rounding to 8 bits; torchvision rounds bicubic filters once, Pillow twice."""
    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    processor = t.LlavaImageProcessor(**size, do_pad=pads, do_normalize=False, do_rescale=False)
    inputs = ImageInputs(size=(336, 336), resize="square" if pads else "crop", mean=CLIP_MEAN)
    for shape in SHAPES:
        image = smooth_image(*shape)
        theirs = processor(Image.fromarray(image), return_tensors="np").pixel_values[0]
        error = np.abs(inputs(image) - theirs.transpose(1, 2, 0).astype(np.float32))
        assert error.max() <= 2, (shape, error.max())
