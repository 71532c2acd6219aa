"""Whole runs of a classifier: it learns, is evaluated alike afterwards, and says what is wrong."""

import pytest

from vit_jax import experiment
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.evaluation import open_run


def classifier_config(**changes):
    """A small ViT on scikit-learn's digits."""
    config = default_config(model="deit_ti16")
    config.model.update(
        image_size=8, patch_size=2, width=32, depth=2, num_heads=2, mlp_dim=64, num_classes=10
    )
    config.preprocess.crop_fraction = 1.0
    config.data.train = "digits:train"
    config.data.augment = "affine(rotate=5, shift=0.05)"
    config.batch_size = 64
    config.total_steps = 300
    config.log_steps = 10
    config.checkpoint_percent = 0.0
    config.objective.name = "classification"
    config.optim.lr = 5e-3
    config.optim.warmup_steps = 10
    config.evals.classification = {"digits": {"data": "digits:test"}}
    config.update_from_flattened_dict(changes)
    return config


def test_a_classifier_learns_and_is_evaluated_alike_afterwards(tmp_path):
    figures = experiment.train(classifier_config(), tmp_path)
    assert figures["classification/digits/top1"] > 0.6
    run = open_run(tmp_path)
    assert run.run(run.evals) == figures
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.num_classes": 7}, "has 10 classes, config.model.num_classes is 7: set it to 10"),
        ({"model.num_classes": 0}, "config.model.num_classes is 0: set it to 10"),
        ({"objective.name": "contrastive"}, "config.tokenizer is not set"),
        ({"objective.loss": "softmx"}, "did you mean 'softmax'"),
        ({"objective.mixup": 0.2}, "mixup"),
    ],
)
def test_a_classifier_with_the_wrong_config(changes, message, tmp_path):
    with pytest.raises((UserError, KeyError, AttributeError), match=message):
        experiment.train(classifier_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
