"""Fine-tuning: what comes from the weights, what is fresh, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vit_jax import experiment
from vit_jax.config import default_config, model_spec
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError
from vit_jax.evaluation import open_run
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.positions import resize_positions, sincos_positions
from vit_jax.models.swin.windows import resize_bias_table
from vit_jax.pretrained import native
from vit_jax.pretrained.weight_files import save_weights

SIZES = {
    "image_size": 8, "patch_size": 2, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16,
}  # fmt: skip


def save(folder, name, **changes):
    """Random weights of a small model in the library's own format: (file, leaves)."""
    spec = registry.model_spec(name)
    architecture = spec.architecture
    if hasattr(architecture, "image"):
        changes = {"image": dataclasses.replace(architecture.image, **SIZES), **changes}
    else:
        changes = {**SIZES, **changes}
    spec = dataclasses.replace(
        spec, architecture=dataclasses.replace(architecture, **changes), tokenizer=None
    )
    rng = np.random.default_rng(3)
    shapes = ModelDef(spec.architecture).shapes()
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    path = folder / f"{name}.safetensors"
    native.save(path, params, spec)
    return str(path), flatten_dict(params, sep="/")


def vit_config(**changes):
    config = default_config(model="deit_ti16", objective="classification")
    config.model.update(**SIZES, num_classes=10)
    config.data.train = "digits:train"
    config.compute.scan = False
    config.update(batch_size=16, total_steps=2, checkpoint_percent=0.0)
    for path, value in changes.items():
        block, _, key = path.rpartition(".")
        config[block][key] = value
    return config


def declared(config):
    """An experiment of the config on one device."""
    config.update(batch_size=16, total_steps=2)
    return experiment.build(config, devices=jax.devices()[:1])


def filled(config):
    """First parameters by path, where fresh ones are all 100."""
    run = declared(config)
    fresh = jax.tree.map(lambda x: np.full(x.shape, 100, np.float32), run.model.shapes())
    weights = run.initialization.load(run.mesh)
    return flatten_dict(jax.jit(run.initialization.fill)(fresh, weights), sep="/")


def test_a_masked_autoencoder_becomes_a_classifier_of_larger_images(tmp_path):
    """As in MAE's fine-tuning: mean pooling, fresh norm and head, learned positions."""
    path, source = save(tmp_path, "mae_vit_b16", decoder_width=8, decoder_num_heads=2)
    config = vit_config(**{
        "init.weights": path,
        "init.fresh": ("head/.*", "norm/.*"),
        "model.pool": "mean_norm",
        "model.image_size": 12,
        "model.position_init": "sincos",
        "model.drop_path": 0.1,
    })  # fmt: skip
    found = filled(config)
    fresh = {p for p, x in found.items() if np.all(np.asarray(x) == 100)}
    assert fresh == {"head/kernel", "head/bias", "norm/scale", "norm/bias"}
    for path in set(found) - fresh - {"positions"}:
        np.testing.assert_array_equal(found[path], source[f"image/{path}"])
    table = np.concatenate([np.zeros((1, 8)), sincos_positions((4, 4), 8)])
    expected = resize_positions(jax.numpy.asarray(table), (4, 4), (6, 6), 1)
    np.testing.assert_allclose(found["positions"], expected, atol=1e-6)


def test_positions_fit_another_shape_of_as_many_patches(tmp_path):
    """From 4 x 4 to 2 x 8 patches: the tables are equally large, but not the same."""
    path, source = save(tmp_path, "deit_ti16", num_classes=10)
    config = vit_config(**{"init.weights": path})
    del config.model.image_size
    config.model.image_size = (4, 16)
    found = filled(config)
    assert found["positions"].shape == source["positions"].shape
    expected = resize_positions(jax.numpy.asarray(source["positions"]), (4, 4), (2, 8), 1)
    np.testing.assert_allclose(found["positions"], expected, atol=1e-6)
    assert not np.allclose(found["positions"], source["positions"], atol=0.1)


TEXT = {"vocab_size": 49408, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}


def prompt_config(weights, **text):
    """A dual encoder whose texts have two learned vectors, of weights without any."""
    config = default_config(model="clip_vit_emoji")
    config.model.image.update(SIZES)
    config.model.text.update({**TEXT, "context_length": 8, "prompt_length": 2, **text})
    config.model.tokenizer = "clip"
    config.init.update(weights=weights, prompt="a drawing")
    return config


def test_words_initialise_the_learned_vectors_of_texts(tmp_path):
    text = dataclasses.replace(
        registry.model_spec("clip_vit_emoji").architecture.text, **TEXT, context_length=10
    )
    path, source = save(tmp_path, "clip_vit_emoji", text=text)
    found = filled(prompt_config(path))
    ids = open_tokenizer("clip", vocab_size=49408, context_length=10)("a drawing")[0, 1:3]
    np.testing.assert_array_equal(found["text/prompt"], source["text/token_embed/embedding"][ids])
    np.testing.assert_array_equal(found["text/positions"], source["text/positions"])
    config = prompt_config(path, context_length=9, prompt_classes=10)
    config.data.train = "digits:train"
    own = declared(config).initialization
    assert own.prompt.tolist() == ids.tolist()
    params = jax.eval_shape(own.fill, declared(config).model.shapes(), own.abstract)
    assert params["text"]["prompt"].shape == (10, 2, 8)
    for changes, words, message in (
        (
            {"prompt_classes": 3},
            "a drawing",
            "prompt_classes=3: expected 10, the number of",
        ),
        ({}, "a drawing of", "has 3 tokens, config.model.text.prompt_length is 2: expected the"),
        ({"prompt_after": 0}, "a drawing", "prompt_after=0: .* opens texts with 1 tokens"),
    ):
        config = prompt_config(path, **changes)
        config.data.train, config.init.prompt = "digits:train", words
        with pytest.raises(UserError, match=message):
            _ = declared(config).initialization
    config.init.weights = ""
    with pytest.raises(UserError, match=r"init\.weights is not set, but other keys"):
        _ = declared(config).initialization


def test_a_classifier_becomes_the_image_tower_of_a_pair(tmp_path):
    """LiT: the text tower and the projections are fresh, the old head is left out."""
    path, source = save(tmp_path, "vit_ti16", num_classes=5)
    config = default_config(model="clip_vit_emoji")
    config.model.image = registry.describe(model_spec(vit_config()).architecture)
    config.model.image.update(num_classes=0, weight_init="xavier")
    config.init.weights = path
    config.init.fresh = ("text.*", "image_projection/.*", "logit_scale", "image/head/.*")
    found = filled(config)
    for path, x in found.items():
        if path.startswith("image/"):
            np.testing.assert_array_equal(x, source[path.removeprefix("image/")])
        else:
            assert np.all(np.asarray(x) == 100), path


def test_a_dual_encoder_becomes_a_detector(tmp_path):
    """Both towers and the projections; positions are resized, and the heads are fresh."""
    small = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    text = {**small, "vocab_size": 300}
    spec = registry.model_spec("clip_vit_emoji")
    changes = {"image": {**small, "image_size": 8}, "text": text, "embed_dim": 6}
    pair = registry.parse_architecture(changes, "model", base=spec.architecture)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), ModelDef(pair).shapes()
    )
    path = tmp_path / "pair.safetensors"
    native.save(path, params, dataclasses.replace(spec, architecture=pair, tokenizer=None))
    config = default_config(model="owl_emoji")
    config.model.image.update(**small, image_size=16)
    config.model.text.update(text)
    config.model.embed_dim = 6
    config.init.weights = str(path)
    config.init.fresh = ("merged_norm/.*", ".*_head/.*")
    source = flatten_dict(params, sep="/")
    for path, x in filled(config).items():
        if path == "image/positions":
            expected = resize_positions(jax.numpy.asarray(source[path]), (2, 2), (4, 4), 0)
            np.testing.assert_allclose(x, expected, atol=1e-6)
        elif path in source:
            np.testing.assert_array_equal(x, source[path])
        else:
            assert path.startswith(("merged_norm/", "class_head/", "box_head/", "objectness_head/"))
            assert np.all(np.asarray(x) == 100), path


def test_a_new_head_only_where_it_is_asked_for(tmp_path):
    path, source = save(tmp_path, "vit_ti16", num_classes=5)
    config = vit_config(**{"init.weights": path})
    with pytest.raises(UserError) as error:
        declared(config).initialization  # noqa: B018 - builds it
    message = str(error.value)
    assert "another shape: head/kernel: expected (8, 10), found (8, 5)" in message
    assert "another shape: head/bias" in message
    assert "config.init.fresh" in message
    config.init.fresh = ("head/.*",)
    found = filled(config)
    np.testing.assert_array_equal(found["head/kernel"], np.full((8, 10), 100))
    np.testing.assert_array_equal(found["positions"], source["positions"])


def test_swins_bias_tables_fit_another_window(tmp_path):
    """A window of 4 for one of 2, in stacks of two blocks: table by table."""
    sizes = {"patch_size": 2, "width": 8, "depths": (2, 2), "num_heads": (2, 2), "num_classes": 3}
    spec = registry.model_spec("swin_t")
    old, new = (
        dataclasses.replace(spec.architecture, **sizes, image_size=size, window_size=window)
        for size, window in ((8, 2), (16, 4))
    )
    models = [ModelDef(architecture) for architecture in (old, new)]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), models[0].shapes())
    path = tmp_path / "swin.safetensors"
    native.save(path, params, dataclasses.replace(spec, architecture=old, tokenizer=None))
    config = default_config(model="swin_t")
    config.model.update(**sizes, image_size=16, window_size=4)
    config.data.train = "digits:train"
    config.objective.name = "classification"
    config.init.weights = str(path)
    found, source = filled(config), flatten_dict(params, sep="/")
    tables = [name for name in found if name.endswith("bias_table")]
    assert {found[name].shape[-2] for name in tables} == {49}
    for name in set(found) - set(tables):
        np.testing.assert_array_equal(found[name], source[name])
    for name in tables:
        stacks = found[name].reshape(-1, 49, 2), source[name].reshape(-1, 9, 2)
        for table, before in zip(*stacks, strict=True):
            expected = resize_bias_table(jax.numpy.asarray(before), (2, 2), (4, 4), "geometric")
            np.testing.assert_allclose(table, expected, atol=1e-6)


def test_a_file_of_another_library(tmp_path):
    """A file of timm does not name its architecture: that of the config is assumed."""
    architecture = dataclasses.replace(
        registry.model_spec("deit_ti16").architecture, **SIZES, num_classes=5
    )
    model = ModelDef(architecture)
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), model.shapes())
    path = tmp_path / "weights.safetensors"
    save_weights(params, model, path, "timm")
    changes = {"model.image_size": 12, "model.head_norm": True, "init.fresh": ("head.*",)}
    config = vit_config(**{"init.weights": str(path), **changes})
    found = filled(config)
    np.testing.assert_array_equal(found["class_token"], params["class_token"])
    np.testing.assert_allclose(
        found["positions"],
        resize_positions(jax.numpy.asarray(params["positions"]), (4, 4), (6, 6), 1),
        atol=1e-6,
    )
    assert found["head/kernel"].shape == (8, 10)
    config.model.depth = 3
    with pytest.raises(UserError, match="does not fit the model, nothing was loaded"):
        declared(config).initialization  # noqa: B018 - builds it
    config.init.model = "swin_t"
    with pytest.raises(UserError, match="the format timm holds models of ViTConfig; found Swin"):
        declared(config).initialization  # noqa: B018 - builds it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init.weights": "absent"}, "absent: expected the workdir of a run or a weight file"),
        ({"init.fresh": ("head/.*",)}, "config.init.weights is not set"),
        ({"init.weights": "FILE", "init.fresh": ("hed/.*",)}, "no path matches 'hed/.*'"),
        ({"init.weights": "FILE", "model.depth": 3}, r"expected \(3, 8"),
        ({"init.weights": "FILE", "init.model": "vit_b17"}, "did you mean 'vit_b16"),
        ({"init.weights": "FILE", "model.class_token": False, "model.pool": "mean"}, "unexpected"),
        ({"init.weights": "FILE", "model.layer_scale": 0.1}, "missing: transformer/blocks/scale1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(changes, message, tmp_path):
    path, _ = save(tmp_path, "deit_ti16", num_classes=10)
    changes = {key: path if value == "FILE" else value for key, value in changes.items()}
    with pytest.raises(UserError, match=message):
        experiment.train(vit_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_goes_on_from_another_and_resumes_without_it(tmp_path):
    """Frozen parameters are those of the first run to the end."""
    experiment.train(vit_config(), tmp_path / "first")
    first = flatten_dict(open_run(tmp_path / "first").params, sep="/")
    changes = {
        "init.weights": str(tmp_path / "first"),
        "optim.freeze": ("(?!head).*",),
        "optim.weight_decay": 0.1,
        "model.head_norm": True,
        "init.fresh": ("head.*",),
    }
    experiment.train(vit_config(**changes), tmp_path / "second")
    second = flatten_dict(open_run(tmp_path / "second").params, sep="/")
    for path, x in second.items():
        same = path in first and np.array_equal(x, first[path])
        assert same != path.startswith("head"), path
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["init"]["weights"] == str(tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "gone")
    assert experiment.train(vit_config(**changes), tmp_path / "second") == {}
    changes["optim.lr"] = 1e-5
    assert experiment.train(vit_config(**changes), tmp_path / "second") == {}
