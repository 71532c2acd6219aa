"""WiSE-FT and soups, as functions and as a command, against averages in NumPy."""

import importlib
import json
import logging

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from tests.helpers import tiny_classifier, tiny_clip
from vit_jax import config as config_lib
from vit_jax.errors import UserError
from vit_jax.evaluation import open_run, open_weights
from vit_jax.experiment import train
from vit_jax.models.definition import ModelDef
from vit_jax.pretrained import native
from vit_jax.pretrained.model import create_model
from vit_jax.weights.averaging import greedy_soup, interpolate, uniform_soup

EVALS = {"classification": {"digits": {"data": "digits:test[:40]"}}}
METRIC = "classification/digits/top1"


def vectors(count=6, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (3, 2), "b": (4,), "scalar": ()}
    return [
        {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def test_the_ends_of_wise_ft_are_exact():
    first, second = vectors(2)
    for alpha, end in ((0.0, first), (1.0, second)):
        found = interpolate(first, second, alpha)
        jax.tree.map(np.testing.assert_array_equal, found, end)
    found = interpolate(first, second, 0.3)["a"]
    expected = 0.7 * first["a"].astype(np.float64) + 0.3 * second["a"].astype(np.float64)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_a_uniform_soup_is_the_mean():
    models = vectors()
    found = uniform_soup(len(models), models.__getitem__)
    expected = np.mean([model["b"].astype(np.float64) for model in models], axis=0)
    np.testing.assert_array_equal(found["b"], expected.astype(np.float32))
    assert found["scalar"].dtype == np.float32
    assert isinstance(found["scalar"], np.ndarray)


def greedy_by_hand(models, score):
    """Recipe 1 of the paper, with the mean of a list in each step."""
    ranked = sorted(range(len(models)), key=lambda i: (-score(models[i]), i))
    members = []
    for i in ranked:
        if not members or score(mean(models, [*members, i])) >= score(mean(models, members)):
            members.append(i)
    return members


def mean(models, members):
    return jax.tree.map(
        lambda *xs: np.mean(np.float64(xs), axis=0).astype(np.float32),
        *[models[i] for i in members],
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_a_greedy_soup(seed, caplog):
    target, *models = vectors(9, seed)
    models = [jax.tree.map(np.add, target, model) for model in models]  # around the target

    def score(params):
        return -sum(float(np.sum((params[name] - target[name]) ** 2)) for name in target)

    with caplog.at_level(logging.INFO, "vit_jax"):
        found = greedy_soup(
            [score(m) for m in models], models.__getitem__, score, [f"m{i}" for i in range(8)]
        )
    assert found.members == greedy_by_hand(models, score)
    assert 1 < len(found.members) < 8
    assert found.score == pytest.approx(score(found.params))
    added = [line.split()[0] for line in caplog.messages if "is added" in line]
    assert added == [f"m{i}" for i in found.members[1:]]


def test_equal_scores_keep_the_order_and_are_added():
    models = vectors(3)
    found = greedy_soup([0.5, 0.5, 0.5], models.__getitem__, lambda _: 0.5, "abc")
    assert found.members == [0, 1, 2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three classifiers near each other, and the paths of their weights."""
    folder = tmp_path_factory.mktemp("models")
    spec = config_lib.model_spec(tiny_classifier())
    init = jax.jit(ModelDef(spec.architecture).init)
    start = jax.device_get(init(jax.random.key(0)))
    models, paths = [], []
    for seed in (1, 2, 3):
        noise = jax.device_get(init(jax.random.key(seed)))
        models.append(jax.tree.map(lambda x, y: x + np.float32(0.5) * y, start, noise))
        paths.append(str(folder / f"{seed}.safetensors"))
        native.save(paths[-1], models[-1], spec)
    return models, paths


@pytest.fixture(scope="module")
def run():
    """Runs the command. Flags of other commands that this process has imported are set aside."""
    every = flags.FLAGS.flags_by_module_dict().items()
    others = [flag for module, own in every if module.startswith("vit_jax") for flag in own]
    others = {flag.name: flag for flag in others if flag.name in flags.FLAGS}
    flags.FLAGS.remove_flag_values(list(others))
    before = set(flags.FLAGS)
    soup = importlib.import_module("vit_jax.soup")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def run(models, output, **values):
        with flagsaver.flagsaver(output=str(output), **values):
            soup.main(models)
        return native.load(output)[1]

    yield run
    flags.FLAGS.remove_flag_values(list(set(flags.FLAGS) - before))
    for name, flag in others.items():
        flags.FLAGS[name] = flag


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)


def test_wise_ft_and_a_uniform_soup_of_files(run, files, tmp_path):
    models, paths = files
    assert_equal(run(paths[:2], tmp_path / "a.safetensors", alpha=1.0), models[1])
    assert_equal(run(paths, tmp_path / "b.safetensors"), mean(models, [0, 1, 2]))


@pytest.mark.release
def test_a_greedy_soup_of_files(run, files, tmp_path, capsys):
    """That of the evaluation, derived model by model."""
    models, paths = files
    evals = tmp_path / "evals.py"
    evals.write_text(f"def get_evals():\n    return {json.dumps(EVALS)}\n")
    opened = open_weights(None, paths[0], batch_size=64)
    suite = opened.suite(EVALS)

    def score(params):
        return suite.run(jax.device_put(params))[METRIC]

    capsys.readouterr()
    found = run(paths, tmp_path / "c.safetensors", greedy=METRIC, evals=str(evals), batch_size=64)
    members = greedy_by_hand(models, score)
    assert_equal(found, mean(models, members))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{paths[0]}  {METRIC} {score(models[0]):.6g}"
    assert lines[3] == f"soup of {len(members)}  {METRIC} {score(mean(models, members)):.6g}"


@pytest.mark.parametrize(
    ("count", "values", "message"),
    [
        (1, {}, "expected two or more models, as `vit-jax soup runs/a runs/b`; found 1"),
        (3, {"alpha": 0.5}, "--alpha needs two models, before and after fine-tuning; found 3"),
        (2, {"alpha": 0.5, "greedy": "a/b/c"}, "--alpha and --greedy exclude each other"),
        (2, {"greedy": "top1"}, "expected TYPE/NAME/METRIC, as zeroshot/val/top1"),
        (2, {"evals": "x.py"}, "--evals applies to --greedy"),
        (2, {"greedy": "zeroshot/val/top1"}, "unknown evaluation of --greedy 'zeroshot/val'"),
    ],
)
def test_wrong_flags(run, files, tmp_path, count, values, message):
    with pytest.raises(UserError, match=message):
        run(files[1][:count], tmp_path / "x.safetensors", **values)


def test_another_model_is_refused(run, files, tmp_path):
    config = tiny_classifier()
    config.model.num_classes = 7
    spec = config_lib.model_spec(config)
    shapes = ModelDef(spec.architecture).shapes()
    other = tmp_path / "other.safetensors"
    native.save(other, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes), spec)
    message = r"2 differ, as head/bias: expected \(10,\), found \(7,\)"
    with pytest.raises(UserError, match=message):
        run([files[1][0], str(other)], tmp_path / "x.safetensors")


@pytest.mark.release
def test_runs_before_and_after_fine_tuning_with_adapters(run, tmp_path):
    """A run and its fine-tuning by LoRA, by its workdir and by a checkpoint."""
    config = tiny_clip()
    config.evals = {}
    train(config, tmp_path / "before")
    config.init.weights = str(tmp_path / "before")
    config.optim.update(lora_rank=2, lora_paths=("image/.*/mlp/.*kernel",), lora_full=("logit.*",))
    train(config, tmp_path / "other")  # learns a tokenizer of its own, the same one here
    config.model.tokenizer = f"saved:{tmp_path / 'before'}"
    train(config, tmp_path / "after")
    ends = [open_run(tmp_path / name).params for name in ("before", "after")]
    checkpoint = str(tmp_path / "after" / "checkpoints" / "10")
    found = run([str(tmp_path / "before"), checkpoint], tmp_path / "soup", alpha=0.25)
    assert_equal(found, interpolate(*ends, 0.25))
    clip = create_model(weights=str(tmp_path / "soup"))
    assert clip.encode_text(clip.tokenize(["the digit 3"])).shape == (1, 16)
    tokenizer = tmp_path / "other" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(UserError, match=r"expected the tokenizer of .*; found another one"):
        run([str(tmp_path / "before"), str(tmp_path / "other")], tmp_path / "x", alpha=0.5)
