"""The command `convert`: both directions, and errors on stderr with exit code 2."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.helpers import ROOT, assert_trees_equal, fast_flags, run_command
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef
from vit_jax.models.dino.model import DINOConfig
from vit_jax.models.registry import model_spec
from vit_jax.models.spec import ModelSpec
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained import native
from vit_jax.pretrained.output import check_output, image_tower, write_output
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights

NAME = "vit_ti16"


def convert(*args, code=0):
    return run_command("convert", *args, code=code)


def random_parameters(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), model.shapes())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small registered model in the library's own format."""
    spec = model_spec(NAME)
    params = random_parameters(ModelDef(spec.architecture))
    directory = tmp_path_factory.mktemp("native")
    native.save(directory, params, spec)
    return directory / "model.safetensors", params


def test_there_and_back(saved, tmp_path):
    """To the format of another library and back, with the description."""
    source, params = saved
    there, back = tmp_path / "there.npz", tmp_path / "back.safetensors"
    done = convert("--input", source, "--output", there, "--to", "vit_jax_npz")
    assert done.stdout.startswith(f"{there}: vit_jax_npz, ")
    assert "Transformer/encoderblock_11/MlpBlock_3/Dense_1/kernel" in open_weights(there)
    convert("--input", there, "--model", NAME, "--output", back, "--to", "vit_jax")
    spec, loaded = native.load(back)
    expected = model_spec(NAME)
    architecture = dataclasses.replace(expected.architecture, position_resize="bilinear_corners")
    assert spec == dataclasses.replace(expected, architecture=architecture)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


# One process for all: most of the time of a command is that of its imports.
ERRORS = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from vit_jax import convert
from vit_jax.errors import UserError
for arguments in json.loads(sys.argv[1]):
    with flagsaver.flagsaver():
        flags.FLAGS(["convert", *arguments])
        try:
            convert.main()
        except UserError as error:
            print(json.dumps(str(error)))
"""


def test_errors(saved, tmp_path):
    source, output = str(saved[0]), str(tmp_path / "x.safetensors")
    undescribed = saved[0].with_name("undescribed.npz")
    save_weights(saved[1], ModelDef(model_spec(NAME).architecture), undescribed, "vit_jax_npz")
    good = {"input": source, "model": NAME, "output": output, "to": "vit_jax"}
    cases = (
        ({"to": "vit_jx"}, "unknown format 'vit_jx'; did you mean 'vit_jax'?"),
        ({"to": "vit_jax_npz"}, f"{output}: expected a name ending in .npz"),
        ({"model": "vit_t16"}, "unknown model 'vit_t16'; did you mean 'vit_ti16'?"),
        (
            {"input": undescribed, "model": ""},
            f"{undescribed}: weights of the format vit_jax_npz do not describe their architecture "
            "and there is no config.json beside them; name the model",
        ),
        ({"model": "vit_s16"}, f"{source} does not fit the model, nothing was loaded; "),
        ({"output": source}, f"{source} exists; --overwrite replaces it"),
        ({"from": "openai_clip"}, "the format openai_clip holds models of CLIPConfig; found ViT"),
        ({"tower": "image"}, "expected a model around an image tower, as DINOConfig; found ViT"),
    )
    commands = [[f"--{k}={v}" for k, v in (good | changes).items()] for changes, _ in cases]
    done = subprocess.run(
        [sys.executable, "-c", ERRORS, json.dumps(commands)], cwd=ROOT, text=True,
        env={**os.environ, "XLA_FLAGS": fast_flags()}, capture_output=True, timeout=600, check=True,
    )  # fmt: skip
    found = map(json.loads, done.stdout.splitlines())
    for error, (_, message) in zip(found, cases, strict=True):
        assert error.startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_converted_run_contains_its_tokenizer(tmp_path, tiny_config):
    """The converted folder is sufficient without the run."""
    import vit_jax
    from vit_jax.evaluation import open_run
    from vit_jax.experiment import train

    tiny_config.total_steps = 3
    train(tiny_config, tmp_path / "run")
    convert("--workdir", tmp_path / "run", "--output", tmp_path / "out", "--to", "vit_jax")
    (tmp_path / "run").rename(tmp_path / "gone")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    model = vit_jax.create_model(weights=tmp_path / "elsewhere")
    run = open_run(tmp_path / "gone")
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    expected = run.embedder.image_embeddings(run.params, [{"image": image}])
    found = model.encode_image(model.preprocess(image)[None], normalize=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    expected = run.embedder.text_embeddings(run.params, ["seven"])
    found = model.encode_text(model.tokenize("seven"), normalize=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer_scale", [1e-5, 0.0])
@pytest.mark.parametrize("format", ["dinov2", "timm", "transformers", "vit_jax"])
def test_the_backbone_of_self_distillation(format, layer_scale, tmp_path):
    """A plain ViT in the names of each library."""
    sizes = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 8}
    backbone = ViTConfig(**sizes, layer_scale=layer_scale)
    architecture = DINOConfig(image=backbone, head_dim=8, bottleneck=4, prototypes=8)
    model = ModelDef(architecture)
    params = random_parameters(model)
    spec = ModelSpec(architecture=architecture, inputs=ImageInputs())
    tower, own, described = image_tower(model, params, spec)
    assert (tower.architecture, described.architecture) == (backbone, backbone)
    output = check_output(str(tmp_path / "x.safetensors"), format, overwrite=False)
    write_output(output, format, own, tower, described)
    assert_trees_equal(load_weights(output, ModelDef(backbone)), params["image"])


def test_a_tower_that_is_no_model():
    coca = ModelDef(model_spec("coca_vit_b32").architecture)
    with pytest.raises(UserError, match=r"is no ViTConfig by itself: it has .*, queries, query_"):
        image_tower(coca, coca.shapes(), None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "expected --input for a weight file, or --workdir for a run"),
        (("--workdir", "a", "--model", "vit_b16"), "--model and --from go with --input"),
        (("--input", "a", "--step", "3"), "--step goes with --workdir"),
        (("--input", "a", "--noema"), "--noema goes with --workdir"),
    ],
)
def test_flags_that_do_not_go_together(args, message, tmp_path):
    done = convert(*args, "--output", tmp_path / "out", "--to", "vit_jax", code=2)
    assert message in done.stderr
