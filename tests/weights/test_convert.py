"""The command `convert`: both directions, and errors on stderr with exit code 2."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.helpers import run_command
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.pretrained import native
from vit_jax.weights.containers.reading import open_weights

NAME = "vit_ti16"


def convert(*args, code=0):
    return run_command("convert", *args, code=code)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small registered model in the library's own format."""
    spec = model_spec(NAME)
    shapes = ModelDef(spec.architecture).shapes()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
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


def test_the_model_has_to_be_named_without_a_description(saved, tmp_path):
    """A file without a config.json does not describe its architecture."""
    there = tmp_path / "there.npz"
    convert("--input", saved[0], "--output", there, "--to", "vit_jax_npz")
    done = convert(
        "--input", there, "--output", tmp_path / "again.npz", "--to", "vit_jax_npz", code=2
    )
    assert done.stderr.endswith("and there is no config.json beside them; name the model\n")


def test_errors(saved, tmp_path):
    source, output = saved[0], tmp_path / "x.safetensors"
    good = {"--input": source, "--model": NAME, "--output": output, "--to": "vit_jax"}
    for changes, message in (
        ({"--to": "vit_jx"}, "error: unknown format 'vit_jx'; did you mean 'vit_jax'?"),
        ({"--to": "vit_jax_npz"}, f"error: {output}: expected a name ending in .npz"),
        ({"--model": "vit_t16"}, "error: unknown model 'vit_t16'; did you mean 'vit_ti16'?"),
        ({"--model": "vit_s16"}, f"error: {source} does not fit the model, nothing was loaded; "),
        ({"--output": source}, f"error: {source} exists; --overwrite replaces it"),
        (
            {"--from": "openai_clip"},
            "error: the format openai_clip holds models of CLIPConfig; found ViTConfig",
        ),
    ):
        args = [x for pair in (good | changes).items() for x in pair]
        assert convert(*args, code=2).stderr.startswith(message)
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


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "expected --input for a weight file, or --workdir for a run"),
        (("--workdir", "a", "--model", "vit_b16"), "--model and --from go with --input"),
        (("--input", "a", "--step", "3"), "--step goes with --workdir"),
    ],
)
def test_flags_that_do_not_go_together(args, message, tmp_path):
    done = convert(*args, "--output", tmp_path / "out", "--to", "vit_jax", code=2)
    assert message in done.stderr
