"""SigLIP 2 in two stages: pairs, then crops beside them in one batch."""

import pytest

from tests.helpers import assert_trees_equal, metrics_of, train_in_two_parts
from vit_jax import experiment
from vit_jax.evaluation import open_run
from vit_jax.recipes import load_recipe
from vit_jax.training.stages import make_stages


@pytest.fixture
def config():
    return tiny_siglip2()


def tiny_siglip2():
    """The recipe on scikit-learn's digits: four steps on pairs, one on crops as well."""
    config = load_recipe("siglip2_b16")
    small = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    text = {"vocab_size": 300, "context_length": 8, **small}
    config.model.update(image={"image_size": 8, "patch_size": 2, **small}, text=text, decoder=text)
    config.model.update(embed_dim=16, head_dim=16, bottleneck=8, prototypes=32)
    config.model.tokenizer = "trained"
    config.data.update(train="digits:train[:64]", workers=0)
    config.data.crops.update(local_size=4, num_local=2)
    config.batch_size, config.total_examples, config.total_steps = 16, 0, 5
    config.optim.update(warmup_steps=1)
    config.mesh.update(data=1, fsdp=1)
    config.compute.update(dtype="float32", remat="none")
    config.grad_accum_steps, config.stages.pairs.grad_accum_steps = 2, 1
    config.log_steps = config.checkpoint_steps = 1
    config.checkpoint_percent = 0.0
    return config


def test_batches_of_both_stages(config):
    first, last = make_stages(experiment.build(config))
    assert (first.name, first.end, last.end) == ("pairs", 4, 5)
    pairs = {"image", "tokens"}
    for stage, fields in (
        (first, pairs),
        (last, pairs | {"global_crops", "local_crops", "patch_mask"}),
    ):
        batch, planned = next(stage.experiment.loader), stage.experiment.abstract_batch
        assert batch.keys() == fields
        shapes = {name: (x.shape, x.dtype) for name, x in planned.items()}
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == shapes
        assert planned["image"].shape == (16, 8 * 8 * 3)
    assert planned["global_crops"].shape == planned["image"].shape


@pytest.mark.release
def test_interrupted_between_the_stages_equals_uninterrupted(config, tmp_path):
    experiment.train(config, tmp_path / "whole")
    train_in_two_parts(config, tmp_path / "parts", step=4)
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    assert list(metrics_of(tmp_path / "whole", "self_distillation/loss")) == [5]
    assert_trees_equal(open_run(tmp_path / "parts").params, open_run(tmp_path / "whole").params)
