"""`vit_jax.evaluate` within this process: runs, weight files, registered names, wrong flags."""

import contextlib
import json
import shutil
import time

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from tests.helpers import assert_trees_equal, tiny_clip
from tests.tracking.test_trackers import events
from vit_jax import cli, create_model, evaluate, evaluation, experiment
from vit_jax.config import default_config, model_spec
from vit_jax.errors import UserError
from vit_jax.evaluation import check_tokenizer, follow, open_run, open_weights
from vit_jax.evaluators import predictions
from vit_jax.evaluators.results import EvaluationLog
from vit_jax.pretrained import native


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of ten steps, and its metrics."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_clip()
    config.evals.probe = {"digits": {"train": "digits:train[:200]", "test": "digits:test[:50]"}}
    config.evals.validation_loss = {"digits": {"data": "digits:test", "examples": 64}}
    return workdir, experiment.train(config, workdir)


@pytest.fixture(scope="module")
def weights(run, tmp_path_factory):
    """The weights of the run as a file with its description."""
    opened = open_run(run[0])
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    native.save(path, opened.params, opened.spec)
    return path


@pytest.fixture(autouse=True)
def parsed_flags():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def evaluated(capsys, **values):
    """The metrics that the command prints."""
    with flagsaver.flagsaver(json=True, **values):
        evaluate.main()
    return json.loads(capsys.readouterr().out)


def test_a_run_has_the_metrics_of_its_training(run, capsys, tmp_path):
    """To the last digit, from the checkpoint and from kept embeddings."""
    workdir, metrics = run
    last = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][-1]
    assert last == {"step": 10, **metrics}
    assert "validation_loss/digits/loss" in metrics
    stored = predictions.load_all(workdir)["probe/digits"]
    right = np.mean(stored["top"][:, 0] == stored["label"])
    assert right == pytest.approx(metrics["probe/digits/top1"], abs=1e-6)
    assert len(stored["label"]) == 50
    points = [len(events(workdir / "tensorboard"))]
    for track in (True, False):
        values = {"workdir": str(workdir), "cache": str(tmp_path), "track": track}
        assert evaluated(capsys, **values) == metrics
        points.append(len(events(workdir / "tensorboard")))
    assert points[1:] == [points[0] + len(metrics)] * 2  # added to the run unless --notrack
    # Images, classes, and the features of two sources.
    assert len(list(tmp_path.glob("*.npy"))) == 4


def test_checkpoints_are_followed_until_the_run_is_complete(run, tmp_path, monkeypatch):
    """The run trains elsewhere: what it writes appears between two looks at its folder."""
    folder, saved = tmp_path / "run", run[0] / "checkpoints" / "10"
    shutil.copytree(run[0], folder, ignore=shutil.ignore_patterns("checkpoints", "result.json"))
    folder.joinpath("checkpoints").mkdir()

    def save(step):
        shutil.copytree(saved, tmp_path / "partial")
        (tmp_path / "partial").rename(folder / "checkpoints" / step)

    def finish():
        save("30")
        shutil.copy(run[0] / "result.json", folder)

    events = iter([lambda: None, lambda: save("10"), lambda: save("20"), finish])
    monkeypatch.setattr(time, "sleep", lambda seconds: next(events)())
    opened = list(follow(folder, done=[20]))
    assert [each.step for each in opened] == [10, 30]
    assert opened[0].embedder is opened[1].embedder
    assert_trees_equal(opened[1].params, open_run(run[0]).params)


def test_a_followed_checkpoint_that_the_run_deletes_is_left_out(run, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    shutil.copytree(folder / "checkpoints" / "10", folder / "checkpoints" / "20")
    followed = follow(folder)
    assert next(followed).step == 10
    shutil.rmtree(folder / "checkpoints" / "20")
    with caplog.at_level("WARNING"):
        assert list(followed) == []
    assert "Step 20 is left out: the run has deleted its checkpoint." in caplog.text


def test_followed_steps_are_logged_once(run, capsys, tmp_path):
    evals = tmp_path / "evals.py"
    evals.write_text(
        "def get_evals():\n    return {'zeroshot': {'digits': {'data': 'digits:test'}}}\n"
    )
    values = {"workdir": str(run[0]), "evals": str(evals), "output": str(tmp_path), "follow": True}
    assert evaluated(capsys, **values)["step"] == 10
    with flagsaver.flagsaver(json=True, **values):
        evaluate.main()
    assert capsys.readouterr().out == ""
    assert len((tmp_path / "evaluations.jsonl").read_text().splitlines()) == 1


def test_a_run_whose_training_batch_does_not_fit_the_devices(run, tmp_path):
    """As a run of other hardware: evaluation has no training batches."""
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    config = json.loads((copy / "config.json").read_text())
    config["batch_size"] = 31
    (copy / "config.json").write_text(json.dumps(config))
    evals = {"zeroshot": config["evals"]["zeroshot"]}
    found = open_run(copy).run(evals)
    assert found == {name: run[1][name] for name in found}


def test_a_run_at_another_size(run, weights, monkeypatch):
    """As its weights in a model that is created for that size; the run gets no records of it."""
    changes = ["model.image.image_size=16", "model.image.patch_size=2"]
    changes.append("model.inputs.crop_fraction=0.8")
    opened = open_run(run[0], overrides=changes)
    model = create_model(
        weights=weights, image_size=16, image={"patch_size": 2}, inputs={"crop_fraction": 0.8}
    )
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    found = opened.embedder.image_embeddings(opened.params, [{"image": image}])
    expected = model.encode_image(model.preprocess(image)[None], normalize=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    monkeypatch.setattr(cli, "_overrides", changes)
    count = len(events(run[0] / "tensorboard"))
    with flagsaver.flagsaver(workdir=str(run[0])):
        assert evaluate._title() == f"{run[0]} {' '.join(changes)}"
        assert evaluate._run_options()["overrides"] == changes
        with contextlib.closing(evaluate._trackers()) as trackers:
            trackers.write_scalars(10, {"probe/digits/top1": 0.5})
    assert len(events(run[0] / "tensorboard")) == count
    with flagsaver.flagsaver(weights="y"), pytest.raises(UserError, match="applies to --workdir"):
        evaluate.main()


def test_changes_that_a_run_cannot_follow(run):
    for change, message in (
        ("model.image.width=64", r"width cannot change within a run; expected one of model\.image"),
        ("model.image_size=16", r"unknown config key 'config\.model\.image_size'"),
        ("model.image.image_size=10", r"patch_size=4 does not divide image_size=\(10, 10\)"),
    ):
        with pytest.raises(UserError, match=message):
            open_run(run[0], overrides=[change])
    config = default_config("clip_rn50")
    config.model.image.depths = (1, 1, 1, 1)
    larger = evaluation._changed(config, ["model.image.image_size=(288, 320)"])
    assert model_spec(larger).inputs.size == (288, 320)
    config = default_config("mae_vit_b16", objective="masked_reconstruction")
    with pytest.raises(UserError, match=r"cannot follow model\.image\.patch_size=8: decoder_head/"):
        evaluation._changed(config, ["model.image.patch_size=8"])


def test_a_weight_file_has_the_metrics_of_its_run(run, weights, capsys, tmp_path):
    evals = tmp_path / "evals.py"
    block = {"data": "digits:test[:100]"}
    evals.write_text(f"def get_evals():\n    return {{'zeroshot': {{'digits': {block}}}}}\n")
    for _ in range(2):  # the second evaluation is appended
        found = evaluated(
            capsys, weights=str(weights), evals=str(evals), batch_size=64, output=str(tmp_path)
        )
    assert found == {k: v for k, v in run[1].items() if k.startswith("zeroshot")}
    lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"weights": str(weights), "step": 0, **found}
    ] * 2
    assert list((tmp_path / "tensorboard").iterdir())


def test_weights_have_no_objective(weights):
    opened = open_weights(None, str(weights), batch_size=64)
    evals = {"validation_loss": {"digits": {"data": "digits:test"}}}
    with pytest.raises(UserError, match=r"validation_loss\.digits needs the objective of a run"):
        opened.run(evals)


def test_data_sets_by_name(weights, capsys):
    found = evaluated(
        capsys, weights=str(weights), datasets=["digits"], evaluators=["zeroshot", "knn", "fewshot"]
    )
    expected = {"zeroshot/digits/top1", "knn/digits/knn20_top1", "fewshot/digits/1shot_top1"}
    assert expected < set(found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no model to evaluate"),
        ({"workdir": "x", "weights": "y"}, "give one of them"),
        ({"weights": "y"}, "give --datasets or --evals"),
        ({"weights": "y", "step": 3}, "--step applies to --workdir"),
        ({"weights": "y", "follow": True}, "--follow applies to --workdir"),
        ({"workdir": "x", "step": 3, "follow": True}, "without --step and --image"),
        ({"weights": "y", "evals": "e.py", "datasets": ["pets"]}, "--evals and --datasets exclude"),
        ({"workdir": "x", "evaluators": ["probe"]}, "--evaluators applies to --datasets"),
        ({"workdir": "x", "names": "n.tsv"}, "--names applies to --images"),
        ({"workdir": "x", "labels": "a,b"}, "--image needs --labels"),
        ({"workdir": "x", "detect": "a,b"}, "--image needs --labels, --detect or --segment"),
        ({"workdir": "x", "image": "a.png", "detect": ","}, "--detect is empty"),
        ({"workdir": "x", "image": "a.png", "detect": "a", "labels": "a"}, "exclude each other"),
        ({"workdir": "x", "image": "a.png", "labels": "a", "draw": "d"}, "--draw applies to"),
        ({"workdir": "x", "threshold": 0.5}, "--threshold applies to --detect, --segment and --dr"),
        ({"workdir": "x", "image": "a.png", "segment": "a", "detect": "a"}, "exclude each other"),
        (
            {"workdir": "x", "image": "a.png", "detect": "a", "detector": "d"},
            "applies to --segment",
        ),
        ({"workdir": "x", "image": "a.png", "labels": " , "}, "--labels is empty"),
        ({"workdir": "x", "image": "a.png", "labels": "a,a"}, "a label twice"),
        ({"weights": "y", "evals": "absent.py"}, "no file of evaluations absent.py"),
        ({"weights": "absent.safetensors", "datasets": ["pets"]}, "absent.safetensors"),
    ],
)
def test_wrong_flags(values, message):
    with flagsaver.flagsaver(**values), pytest.raises(UserError, match=message):
        evaluate.main()


def test_only_detections_are_drawn():
    blocks = {"zeroshot": {"a": {"data": "x"}}, "detection": {"b": {"data": "y"}},
              "mine": {"c": {"data": "z", "evaluator": "detection"}}}  # fmt: skip
    with flagsaver.flagsaver(draw="drawn", threshold=0.3):
        found = evaluate._drawn(blocks)
        with pytest.raises(UserError, match=r"--draw=drawn: .* found zeroshot"):
            evaluate._drawn({"zeroshot": blocks["zeroshot"]})
    assert found == {
        "zeroshot": blocks["zeroshot"],
        "detection": {"b": {"data": "y", "draw": "drawn/b", "draw_threshold": 0.3}},
        "mine": {"c": {**blocks["mine"]["c"], "draw": "drawn/c", "draw_threshold": 0.3}},
    }
    assert evaluate._drawn(blocks) is blocks


def test_a_model_without_text_and_head_needs_a_choice_of_evaluators():
    values = {"model": "mae_vit_b16", "datasets": ["digits"]}
    with flagsaver.flagsaver(**values), pytest.raises(UserError, match="--evaluators=probe,knn"):
        evaluate.main()


def test_tokenizers_with_other_ids_are_refused(run):
    opened = open_run(run[0])
    tokenizer = opened.embedder.tokenizer
    check_tokenizer(tokenizer, "trained", opened.spec, "x")
    with pytest.raises(UserError, match="kind 'clip', found 'trained'"):
        check_tokenizer(tokenizer, "clip", opened.spec, "x")


def test_a_registered_name_alone(run):
    saved = f"saved:{run[0]}"
    opened = open_weights("clip_vit_emoji", None, batch_size=8, tokenizer=saved)
    assert opened.embedder.text_embeddings(opened.params, ["a cat"]).shape[0] == 1
    with pytest.raises(UserError, match="eval_batch_size=0: expected 1 or more"):
        open_weights("clip_vit_emoji", None, batch_size=0, tokenizer=saved)


def test_results_are_written_as_soon_as_an_evaluation_is_done(tmp_path):
    with contextlib.closing(EvaluationLog(str(tmp_path), "x", 7)) as log:
        log.write({"a/b/top1": 0.5})
        line = json.loads((tmp_path / "evaluations.jsonl").read_text())
        assert line == {"weights": "x", "step": 7, "a/b/top1": 0.5}
    with contextlib.closing(EvaluationLog(None, "x", 7)) as log:
        log.write({"a/b/top1": 0.5})
