"""`vit_jax.evaluate` within this process: runs, files of weights, names; what it refuses."""

import json

import pytest
from absl.testing import flagsaver

from vit_jax import evaluate, experiment
from vit_jax import evaluation as restore
from vit_jax.errors import UserError
from vit_jax.evaluators import datasets
from vit_jax.evaluators.results import Results
from vit_jax.models.definition import ModelDef
from vit_jax.pretrained import native


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of ten steps and its metrics."""
    from tests.helpers import tiny_clip

    workdir = tmp_path_factory.mktemp("run")
    config = tiny_clip()
    config.evals.probe = {"digits": {"train": "digits:train[:200]", "test": "digits:test[:50]"}}
    return workdir, experiment.train(config, workdir)


@pytest.fixture(scope="module")
def weights(run, tmp_path_factory):
    """The same weights as a file that carries its description."""
    opened = restore.restore(run[0])
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    native.save(path, opened.params, opened.spec)
    return path


def evaluated(capsys, **flags):
    """The metrics that the command prints."""
    with flagsaver.flagsaver(json=True, **flags):
        evaluate.main()
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def parsed_flags():
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def test_a_run_has_the_figures_of_its_training(run, capsys, tmp_path):
    """Digit for digit, from the checkpoint and from cached features."""
    workdir, figures = run
    last = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][-1]
    assert last == {"step": 10, **figures}
    for _ in range(2):
        assert evaluated(capsys, workdir=str(workdir), cache=str(tmp_path)) == figures
    assert len(list(tmp_path.glob("*.npy"))) == 4  # images, classes, features of two sources


def test_a_file_of_weights_has_the_figures_of_its_run(run, weights, capsys, tmp_path):
    evals = tmp_path / "evals.py"
    block = {"data": "digits:test[:100]"}
    evals.write_text(f"def get_evals():\n    return {{'zeroshot': {{'digits': {block}}}}}\n")
    found = evaluated(
        capsys, weights=str(weights), evals=str(evals), batch_size=64, output=str(tmp_path / "out")
    )
    assert found == {k: v for k, v in run[1].items() if k.startswith("zeroshot")}
    lines = (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"weights": str(weights), "step": 0, **found}]
    assert list((tmp_path / "out" / "tensorboard").iterdir())


def test_data_sets_by_name(weights, capsys):
    found = evaluated(
        capsys, weights=str(weights), datasets=["digits"], evaluators=["zeroshot", "knn", "fewshot"]
    )
    assert {"zeroshot/digits/top1", "knn/digits/knn20_top1", "fewshot/digits/1shot_top1"} < set(
        found
    )


def test_every_data_set_makes_blocks():
    everything = datasets.blocks(
        datasets.KINDS, [n for n, d in datasets.DATA_SETS.items() if d.test]
    )
    assert len(everything["zeroshot"]) == len(datasets.DATA_SETS) - 2
    assert "train" in everything["probe"]["vtab/eurosat"]
    vtab = datasets.blocks(["zeroshot"], ["vtab/*"])["zeroshot"]
    assert len(vtab) == 14
    assert all(name.startswith("vtab/") for name in vtab)
    own = datasets.blocks(["zeroshot", "probe"], ["pets=folder:/data/pets"])
    assert own["zeroshot"]["pets"]["data"] == "folder:/data/pets"
    assert "probe" not in own  # training images of another place would not go with it
    captions = datasets.blocks(["zeroshot", "retrieval"], ["coco_retrieval=table:x.csv"])
    assert captions == {
        "retrieval": {
            "coco_retrieval": {
                "data": "table:x.csv", "captions": "all", "equal_captions": "apart",
            }
        }
    }  # fmt: skip


def test_names_and_templates_of_every_data_set_exist():
    from vit_jax.evaluators import prompts

    for name, data in datasets.DATA_SETS.items():
        assert prompts.templates(data.templates), name
        if data.class_names and data.class_names != "imagenet":
            stored = prompts._named(data.class_names)
            assert prompts.class_names(data.class_names, stored) == stored


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "nothing to evaluate"),
        ({"workdir": "x", "weights": "y"}, "give one of them"),
        ({"weights": "y"}, "give --datasets or --evals"),
        ({"weights": "y", "step": 3}, "--step goes with --workdir"),
        ({"weights": "y", "evals": "e.py", "datasets": ["pets"]}, "--evals and --datasets say"),
        ({"workdir": "x", "evaluators": ["probe"]}, "--evaluators goes with --datasets"),
        ({"weights": "y", "evals": "absent.py"}, "no file of evaluations absent.py"),
        ({"weights": "absent.safetensors", "datasets": ["pets"]}, "absent.safetensors"),
    ],
)
def test_wrong_flags(flags, message):
    with flagsaver.flagsaver(**flags), pytest.raises(UserError, match=message):
        evaluate.main()


@pytest.mark.parametrize(
    ("names", "kinds", "message"),
    [
        (["pet"], ["zeroshot"], "did you mean 'pets'"),
        (["pets"], ["probes"], "did you mean 'probe'"),
        (["vtap/*"], ["zeroshot"], "expected a group"),
        (["coco_retrieval"], ["retrieval"], "has to be given a source"),
        (["imagenet_v2"], ["probe"], "training data are missing"),
    ],
)
def test_wrong_data_sets(names, kinds, message):
    with pytest.raises(UserError, match=message):
        datasets.blocks(kinds, names)


def test_another_tokenizer_than_the_weights_is_refused(run, tmp_path):
    opened = restore.restore(run[0])
    model: ModelDef = opened.model
    tokenizer = opened.embedder._tokenizer
    restore.check_tokenizer(tokenizer, "trained", model, "x")
    with pytest.raises(UserError, match="kind 'clip', found 'trained'"):
        restore.check_tokenizer(tokenizer, "clip", model, "x")


def test_a_registered_name_alone(run, caplog):
    saved = f"saved:{run[0]}"
    opened = restore.open_weights("clip_vit_emoji", None, batch_size=8, tokenizer=saved)
    assert opened.embedder.texts(opened.params, ["a cat"]).shape[0] == 1
    with pytest.raises(UserError, match="--batch_size=9 is not a multiple"):
        restore.open_weights("clip_vit_emoji", None, batch_size=9, tokenizer=saved)


def test_results_are_there_once_an_evaluation_is_done(tmp_path):
    with Results(str(tmp_path), "x", 7) as results:
        results.write({"a/b/top1": 0.5})
        line = json.loads((tmp_path / "evaluations.jsonl").read_text())
        assert line == {"weights": "x", "step": 7, "a/b/top1": 0.5}
    with Results(None, "x", 7) as results:
        results.write({"a/b/top1": 0.5})
