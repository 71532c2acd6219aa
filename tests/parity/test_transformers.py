"""Hugging Face's transformers at published sizes (pytest -m parity; needs the extra `parity`)."""

import functools
import shutil
from collections.abc import Callable

import pytest

pytest.importorskip("transformers")

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from safetensors.torch import save_file
from torch import nn

from tests.fixtures.generators.transformers_outputs import compute, randomise
from tests.parity.live import TOLERANCE, check
from tests.weights.activations import INPUTS, activations
from tests.weights.reference import relative_error
from vit_jax.models.definition import ModelDef
from vit_jax.models.grounding_dino.decoder import Decoder
from vit_jax.pretrained.weight_files import load_weights, read_architecture, save_weights

pytestmark = pytest.mark.parity

T = transformers
SMALL = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
CLIPSEG = functools.partial(T.CLIPSegConfig, vision_config={"patch_size": 16})
# The library's default sizes are those of the base models.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "clip": lambda: T.CLIPModel(T.CLIPConfig()),  # ViT-B/32
    "aimv2_pair": lambda: T.Aimv2Model(T.Aimv2Config(projection_dim=768)),  # L/14, LiT
    "clipseg": lambda: T.CLIPSegForImageSegmentation(CLIPSEG()),  # rd64
    "clipseg_refined": lambda: T.CLIPSegForImageSegmentation(
        CLIPSEG(use_complex_transposed_convolution=True)
    ),
    "siglip": lambda: T.SiglipModel(T.SiglipConfig()),  # B/16
    "vit": lambda: T.ViTForImageClassification(T.ViTConfig(num_labels=1000)),
    "deit": lambda: T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(num_labels=1000)),
    "dinov2": lambda: T.Dinov2Model(T.Dinov2Config(**SMALL)),
    "dinov2_with_registers": lambda: T.Dinov2WithRegistersModel(
        T.Dinov2WithRegistersConfig(**SMALL)
    ),
    "dinov2_classifier": lambda: T.Dinov2ForImageClassification(
        T.Dinov2Config(**SMALL | {"image_size": 224}, num_labels=1000)
    ),
    "dinov3": lambda: T.DINOv3ViTModel(T.DINOv3ViTConfig(num_register_tokens=4)),  # S/16
    "grounding_dino": lambda: T.GroundingDinoForObjectDetection(  # tiny
        T.GroundingDinoConfig(
            backbone_config=T.SwinConfig(image_size=[250, 334], out_indices=[2, 3, 4])
        )
    ),
    "mae": lambda: T.ViTMAEForPreTraining(T.ViTMAEConfig()),
    "owlvit": lambda: T.OwlViTForObjectDetection(T.OwlViTConfig()),  # B/32
    "owlv2": lambda: T.Owlv2ForObjectDetection(  # B/16
        T.Owlv2Config(vision_config={"image_size": 960})
    ),
    "sam": lambda: T.SamModel(T.SamConfig()),  # ViT-B
    "swin": lambda: T.SwinForImageClassification(T.SwinConfig(num_labels=1000)),  # T
}


def select_as(library, monkeypatch):
    """Makes Grounding DINO take the positions that the library has selected, in their order.

    Scores of positions are nearly equal with random weights, and their order decides which learned
    query belongs to which position. Errors of rounding exchange some of them.

    Args:
        library: outputs of the library.
        monkeypatch: pytest's.

    Returns:
        The positions (B, Q).
    """
    boxes, selected = library["position_boxes"][:, None], library["selected"][:, :, None]
    distance = np.abs(boxes - selected).sum(axis=-1)
    assert (distance.min(axis=-1) == 0).all()
    rows = distance.argmin(axis=-1)
    monkeypatch.setattr(Decoder, "select", lambda self, logits: jnp.asarray(rows))
    return rows


def check_selection(found, tokens, rows):
    """Checks that the selected positions are those of the largest logits here as well."""
    logits = np.where(tokens[:, None] > 0, found["position_logits"], -np.inf).max(axis=-1)
    largest = -np.sort(-logits)[:, : rows.shape[1]]
    selected = np.take_along_axis(logits, rows, axis=1)
    assert relative_error(selected, largest) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_published_size(name, tmp_path, monkeypatch):
    theirs = MODELS[name]()
    randomise(theirs)
    count = 1 if name.startswith(("owl", "sam")) else 2  # thousands of tokens
    given = {key: value.numpy() for key, value in compute(name, theirs, count).items()}
    expected = {k: v for k, v in given.items() if k.split(".")[0] not in INPUTS}
    theirs.save_pretrained(tmp_path / "in")
    model = ModelDef(read_architecture(tmp_path / "in"))
    params = load_weights(tmp_path / "in", model)
    rows = select_as(given, monkeypatch) if name == "grounding_dino" else None
    found = jax.jit(lambda params, given: activations(model.bind(params), given))(params, given)
    check(f"{name}, in", found, expected)
    if rows is not None:
        check_selection(found, given["tokens"], rows)

    state = {key: value.contiguous().clone() for key, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "in_memory.safetensors")
    again = load_weights(tmp_path / "in_memory.safetensors", model)
    jax.tree.map(np.testing.assert_array_equal, again, params)

    save_weights(params, model, tmp_path / "out" / "model.safetensors", "transformers")
    shutil.copy(tmp_path / "in" / "config.json", tmp_path / "out")
    loaded, info = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    back = {key: value.numpy() for key, value in compute(name, loaded, count).items()}
    check(f"{name}, out", {key: back[key] for key in expected}, expected)
