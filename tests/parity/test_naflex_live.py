"""SigLIP 2 NaFlex against transformers and timm (pytest -m parity; needs the extra `parity`)."""

import dataclasses
import shutil

import numpy as np
import pytest

pytest.importorskip("transformers")

import jax
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm import create_model as create_timm_model
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from tests.fixtures.generators.make_detection_inputs import smooth_image
from tests.fixtures.generators.make_naflex import outputs, process, random_images, timm_features
from tests.fixtures.generators.transformers_outputs import randomise
from tests.parity.live import check
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.pretrained.weight_files import load_weights, read_architecture, save_weights

pytestmark = pytest.mark.parity

SHAPES = ((97, 333), (401, 150))  # 18 x 64 px of patches at most; padded
INPUTS = model_spec("siglip2_b16_naflex").inputs


def packed_images():
    return np.stack([INPUTS.pack(INPUTS(image)) for image in random_images(SHAPES)])


def test_dual_encoder_of_published_size(tmp_path):
    """B/16 with a small vocabulary."""
    config = transformers.Siglip2Config(text_config={"vocab_size": 1000})
    theirs = transformers.Siglip2Model(config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "in")
    given = process(random_images(SHAPES), 16, 256)
    expected = {key: x.numpy() for key, x in outputs(theirs, given).items()}
    tokens = expected.pop("tokens")
    blocks = [expected.pop(f"image_block_{i}") for i in range(12)]
    model = ModelDef(read_architecture(tmp_path / "in"))
    params = load_weights(tmp_path / "in", model)

    @jax.jit
    def encode(params, packed, tokens):
        module, images = model.bind(params), INPUTS.normalize(packed)
        image = module.encode_image(images, normalize=True)
        text = module.encode_text(tokens, normalize=True)
        scale, bias = module.logit_parameters()
        found = {"image_normalized": image, "text_normalized": text}
        return found | {"logits": image @ text.T * scale + bias}, module.features(images, range(12))

    found, own = encode(params, packed_images(), tokens)
    check("NaFlex B/16, in", found, expected)
    mask = np.asarray(INPUTS.normalize(packed_images()).mask)
    named = [{f"block_{i}": np.asarray(x)[mask] for i, x in enumerate(xs)} for xs in (own, blocks)]
    check("NaFlex B/16, blocks", *named)

    save_weights(params, model, tmp_path / "out" / "model.safetensors", "transformers")
    shutil.copy(tmp_path / "in" / "config.json", tmp_path / "out")
    loaded, info = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    back = outputs(loaded, given)
    check("NaFlex B/16, out", {key: back[key].numpy() for key in expected}, expected)


def test_tower_of_timm(tmp_path):
    theirs = create_timm_model("naflexvit_base_patch16_siglip", num_classes=0)
    randomise(theirs)
    given = process(random_images(SHAPES), 16, 256)
    expected = timm_features(theirs, given).numpy()
    save_file(theirs.state_dict(), tmp_path / "in.safetensors")
    model = ModelDef(model_spec("timm_siglip2_b16_naflex").architecture)
    params = load_weights(tmp_path / "in.safetensors", model)
    encode = jax.jit(lambda params, x: model.bind(params).encode_image(INPUTS.normalize(x)))
    check("timm NaFlex B/16, in", {"pooled": encode(params, packed_images())}, {"pooled": expected})

    save_weights(params, model, tmp_path / "out.safetensors", "timm")
    with torch.no_grad():
        for value in theirs.state_dict().values():
            value.zero_()
    theirs.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)
    back = {"pooled": timm_features(theirs, given).numpy()}
    check("timm NaFlex B/16, out", back, {"pooled": expected})


@pytest.mark.parametrize("budget", [64, 256])
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_preprocessing(backend, budget):
    """Equal to Pillow's; torchvision differs by one level."""
    kinds = {"pil": Siglip2ImageProcessorPil, "torchvision": transformers.Siglip2ImageProcessor}
    processor = kinds[backend](max_num_patches=budget)
    side = 16 * round(budget**0.5)
    inputs = dataclasses.replace(INPUTS, size=(side, side))
    for shape in [(1, 1), (1, 90), (90, 1), (375, 500), (500, 333), (60, 60), (233, 17)]:
        image = smooth_image(*shape)
        theirs = processor([image], return_tensors="pt", input_data_format="channels_last")
        found = inputs.normalize(inputs.pack(inputs(image))[None])
        np.testing.assert_array_equal(found.grid, theirs["spatial_shapes"])
        mask = np.asarray(theirs["pixel_attention_mask"], bool)
        np.testing.assert_array_equal(found.mask, mask)
        levels = 127.5 * np.abs(np.asarray(found.values) - theirs["pixel_values"].numpy())[mask]
        assert levels.max() <= (0.01 if backend == "pil" else 1.01)
