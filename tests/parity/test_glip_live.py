"""GLIP-T at its published size against the reference of tests/fixtures/generators/make_glip.py."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("transformers")

import torch
import transformers
from safetensors.torch import save_file

from tests.fixtures.generators import make_glip
from tests.parity.live import check, random_images
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights

pytestmark = pytest.mark.parity

# Li et al. 2022, table 1 and the authors' configuration; those of Swin and BERT are the defaults.
SIZES = make_glip.Sizes(
    swin=transformers.SwinConfig(out_features=list(make_glip.STAGES)),
    bert=transformers.BertConfig(attn_implementation="eager"),
    width=256,
    depth=6,
    fusion_heads=8,
    fusion_width=2048,
    divisor=32,
)
NAMES = ("text", "image_layers", "text_layers", "logits", "deltas", "centerness")
CAPTION = np.int64([(101, 1037, 4937, 1012, 1037, 2417, 3899, 1012, 102, 0, 0)])


def test_published_size(tmp_path):
    """Every intermediate at 250 x 334 px, and the same tensors after saving."""
    theirs = make_glip.Glip(SIZES).eval()
    make_glip.randomise(theirs)
    images = random_images(1, 250, 334, 3)
    state = {k: v.contiguous().clone() for k, v in make_glip.checkpoint(theirs).items()}
    save_file(state, tmp_path / "in.safetensors")
    with torch.no_grad():
        outputs = theirs.double()(torch.from_numpy(images), torch.from_numpy(CAPTION))
    expected = {name: x.numpy() for name, x in outputs.items()}

    model = ModelDef(model_spec("glip_tiny").architecture)
    params = load_weights(tmp_path / "in.safetensors", model)
    predict = jax.jit(lambda params, *inputs: model.bind(params).predict(*inputs))
    predictions = predict(params, images, CAPTION.astype(np.int32))
    found = {name: getattr(predictions, name) for name in NAMES}
    found |= {f"level_{i}": level for i, level in enumerate(predictions.levels)}
    check("in", found, expected)

    save_weights(params, model, tmp_path / "out.safetensors", "glip")
    before, after = (open_weights(tmp_path / f"{name}.safetensors") for name in ("in", "out"))
    assert set(after) == {key for key in before if "cls_logits" not in key}
    for key in after:
        np.testing.assert_array_equal(after.read(key), before.read(key), strict=True)
