"""Exported models: reloaded without this package, with a model card."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

import vit_jax
from tests.helpers import run_command, tiny_classifier
from tests.test_report import write_run
from vit_jax.errors import MissingPackageError, UserError
from vit_jax.exporting.folder import export_model
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.pretrained import native
from vit_jax.pretrained.model import PretrainedModel

IMAGE = {"image_size": 16, "patch_size": 8, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 8}
TEXT = {"width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 8}
SHORT = {**TEXT, "vocab_size": 49408, "context_length": 8}  # the ids of CLIP's tokenizer
# Heads of one feature, in bfloat16, abort XLA's compiler for CPUs (JAX 0.10 and 0.12).
COCA = {"image": IMAGE, "text": TEXT, "decoder": TEXT, "embed_dim": 8, "pooler_heads": 2}
SIGLIP = {"image": IMAGE, "text": SHORT, "embed_dim": 8, "tokenizer": "clip"}
RESNET = {"image_size": 32, "depths": (1, 1, 1, 1), "width": 4, "num_heads": 2, "embed_dim": 8}
# The symbolic size of a batch is no int, which the annotations state.
unchecked = pytest.mark.usefixtures("unchecked_annotations")
LABELS = ["a cat", "two dogs", "a rocket"]

# A program of its own: the snippet of the card first, then every program on the given inputs.
CALLER = """
import json, sys
{snippet}
assert result.shape == (2, 3), result.shape
description, found = json.load(open("export.json")), {{}}
for inputs in (np.load("inputs.npz"),):
    for name, program in description["programs"].items():
        call = export.deserialize(bytearray(open(program["file"], "rb").read())).call
        found[name] = np.asarray(call(weights, inputs[name]))
np.savez("outputs.npz", **found)
print(sorted({{"vit_jax", "flax", "cv2", "PIL"}} & {{m.partition(".")[0] for m in sys.modules}}))
"""


@pytest.fixture(scope="module")
def clip():
    return vit_jax.create_model("siglip_b16", **SIGLIP)


@pytest.fixture(scope="module")
def exported(clip, tmp_path_factory):
    """A folder written by the command."""
    folder = tmp_path_factory.mktemp("exported")
    native.save(folder / "weights", clip.params, clip.spec)
    flags = ("--labels", ",".join(LABELS), "--platforms", "cpu,tpu", "--license", "MIT")
    flags += ("--tokenizer", "clip")
    done = run_command(
        "export", "--weights", folder / "weights", "--output", folder / "model", *flags
    )
    assert done.stdout.count("differs from the model by") == 3
    return folder / "model"


def test_programs_run_without_this_package(clip, exported):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    tokens = clip.tokenize(LABELS)[:1]
    np.savez(exported / "inputs.npz", encode_image=images, classify=images[:1], encode_text=tokens)
    snippet = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.S)[1]
    done = subprocess.run(
        [sys.executable, "-c", CALLER.format(snippet=snippet)], cwd=exported, text=True,
        capture_output=True, timeout=120, check=False,
        env={**os.environ, "XLA_FLAGS": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    found = np.load(exported / "outputs.npz")
    z = np.asarray(clip.encode_image(clip.spec.inputs.normalize(images), normalize=True))
    t = np.asarray(clip.encode_text(clip.tokenize(LABELS), normalize=True))
    np.testing.assert_allclose(found["encode_image"], z, atol=2e-6)
    np.testing.assert_allclose(found["encode_text"], t[:1], atol=2e-6)
    scale, bias = np.exp(clip.params["logit_scale"]), clip.params["logit_bias"]
    np.testing.assert_allclose(found["classify"], z[:1] @ t.T * scale + bias, atol=1e-4)


def test_description_has_what_a_caller_needs(clip, exported):
    found = json.loads((exported / "export.json").read_text())
    assert found["labels"] == LABELS
    assert found["preprocessing"]["size"] == [16, 16]
    assert found["preprocessing"]["resize"] == clip.spec.inputs.resize
    assert found["programs"]["classify"]["input"] == {
        "shape": ["batch", 16, 16, 3],
        "dtype": "uint8",
    }
    assert found["programs"]["encode_text"]["output"]["shape"] == ["batch", 8]
    assert json.loads((exported / "tokenizer.json").read_text())["kind"] == "clip"
    run = ("--weights", exported / "absent", "--output", exported)
    assert "--overwrite replaces it" in run_command("export", *run, code=2).stderr


@unchecked
def test_card_of_a_run(tmp_path):
    """Its metadata are those of the Hub; config and metrics are those of the run."""
    config = tiny_classifier()
    model = vit_jax.create_model("vit_b16", **IMAGE, num_classes=3)
    model.params["head"]["kernel"] = np.ones((8, 3), np.float32)  # fresh ones are zero
    lines = [{"step": 10, "loss": 1.0}]
    run = write_run(tmp_path / "run", config.to_dict(), lines)
    metrics = {"classification/digits/top1": 0.5}
    (run / "result.json").write_text(json.dumps({"step": 10, "metrics": metrics}))
    found = export_model(model, tmp_path / "m", name="digits", platforms=["cpu"], workdir=run)
    assert set(found) == {"encode_image", "classify"}
    assert max(found.values()) < 1e-5
    _, head, text = (tmp_path / "m/README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["tags"] == ["jax", "stablehlo", "vit"]
    assert "license" not in metadata
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["name"] == "classification/digits"
    assert result["metrics"] == [{"type": "top1", "value": 0.5}]
    assert "| `config.data.train` | `digits:train` |" in text
    assert "| `classification/digits/top1` | 0.5 |" in text


@pytest.mark.release
@unchecked
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_b16", {**IMAGE, "num_classes": 3}),
        ("mae_vit_b16_encoder", IMAGE),
        ("swin_t", {"image_size": 16, "width": 8, "depths": (1, 1), "num_heads": (1, 2)}),
        ("resnet50", {"image_size": 32, "depths": (1, 1, 1, 1), "width": 4, "num_classes": 3}),
        ("clip_vit_b32", {"image": IMAGE, "text": {**TEXT, "prompt_length": 2}, "embed_dim": 8}),
        ("clip_rn50", {"image": RESNET, "text": TEXT, "embed_dim": 8}),
        ("aimv2_l14_lit", {"image": IMAGE, "text": TEXT, "embed_dim": 8}),
        ("cappa_b16", {"image": IMAGE, "decoder": TEXT}),
        ("coca_vit_b32", COCA),
        ("siglip2_b16_captioner", {**SIGLIP, "decoder": SHORT}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_architectures(name, changes, dtype, tmp_path):
    if name == "swin_t":
        changes = {**changes, "window_size": 2}
    model = vit_jax.create_model(name, dtype=dtype, **changes)
    found = export_model(model, tmp_path, name=name, platforms=["cpu", "cuda", "tpu"])
    assert max(found.values()) < {"float32": 1e-5, "bfloat16": 0.05}[dtype]


def test_refusals(clip, tmp_path, monkeypatch):
    spec = model_spec("owl_emoji")
    owl = PretrainedModel(spec, ModelDef(spec.architecture), {})
    with pytest.raises(UserError, match="owl models are not exported: expected a classifier"):
        export_model(owl, tmp_path, name="x")
    with pytest.raises(UserError, match="did you mean 'cuda'"):
        export_model(clip, tmp_path, name="x", platforms=["cpu", "cud"])
    with pytest.raises(UserError, match="compared with the model on cpu: expected it among"):
        export_model(clip, tmp_path, name="x", platforms=["tpu"])
    spec = model_spec("vit_b16")
    vit = PretrainedModel(spec, ModelDef(spec.architecture), {})
    with pytest.raises(UserError, match="vit models have no text tower"):
        export_model(vit, tmp_path, name="x", labels=["a cat"])
    unnamed = dataclasses.replace(clip.spec, tokenizer="gemma")
    with pytest.raises(UserError, match="expected gemma:PATH"):
        export_model(PretrainedModel(unnamed, clip.definition, clip.params), tmp_path, name="x")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(MissingPackageError, match=r"vit_jax\[export\]"):
        export_model(clip, tmp_path, name="x")
    assert not list(tmp_path.iterdir())
