"""Whole runs of a classifier: it learns, is evaluated alike afterwards, and refuses wrong keys."""

import pytest

from vit_jax import experiment
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.evaluation import open_run


def classifier_config(**changes):
    """A small ViT on scikit-learn's digits."""
    config = default_config(model="deit_ti16", objective="classification")
    config.model.update(
        image_size=8, patch_size=4, width=32, depth=2, num_heads=2, mlp_dim=64, num_classes=10
    )
    config.model.inputs.crop_fraction = 1.0
    config.data.train = "digits:train"
    config.data.augment = "affine(rotate=5, shift=0.05)"
    config.batch_size = 64
    config.total_steps = 100
    config.log_steps = 10
    config.checkpoint_percent = 0.0
    config.optim.lr = 1e-2
    config.optim.warmup_steps = 10
    config.evals.classification = {"digits": {"data": "digits:test"}}
    for path, value in changes.items():
        block, _, key = path.rpartition(".")
        config[block][key] = value
    return config


def test_a_classifier_learns_and_is_evaluated_alike_afterwards(tmp_path):
    metrics = experiment.train(classifier_config(**{"mesh.data": 1}), tmp_path)
    assert metrics["classification/digits/top1"] > 0.6
    run = open_run(tmp_path)
    assert run.run(run.evals) == metrics
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.num_classes": 7}, "has 10 classes, config.model.num_classes is 7: set it to 10"),
        ({"model.num_classes": 0}, "needs a model with a classification head"),
        ({"objective.name": "contrastive"}, "needs a dual encoder, as clip_vit_b16; found ViTConf"),
        ({"objective.loss": "softmx"}, "did you mean 'softmax'"),
        ({"objective.mixup": 0.2}, "did you mean 'config.objective.mixup_alpha'"),
    ],
)
def test_a_classifier_with_the_wrong_config(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        experiment.train(classifier_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
