"""Short runs of dual encoders: several captions per image, distillation, learned prompts."""

import numpy as np
import pytest

from vit_jax import create_model, experiment
from vit_jax.recipes import load_recipe

SMALL = {
    "image": {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "patch_dropout": 0.0},
    "text": {"vocab_size": 512, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16},
    "embed_dim": 16,
}


def small_config(tokenizer="trained", **objective):
    """A small dual encoder on every sixteenth emoji."""
    config = load_recipe("clip_emoji")
    for name, value in SMALL.items():
        if isinstance(value, dict):
            config.model[name].update(value)
        else:
            config.model[name] = value
    config.model.tokenizer = tokenizer
    config.data.train = "emoji:train[::16]"
    config.data.group_by = ()
    config.update(batch_size=32, total_steps=2)
    config.objective.update(objective)
    config.evals = {}
    return config


@pytest.mark.release
def test_each_objective_trains(tmp_path):
    teacher = tmp_path / "teacher"
    config = small_config()
    config.data.captions_per_image = 3
    config.evals.validation_loss = {
        "held_out": {"data": "emoji:heldout_base[:32]", "batch_size": 32}
    }
    found = experiment.train(config, teacher)
    assert found["validation_loss/held_out/loss"] > np.log(3) / 2

    tokenizer = f"saved:{teacher}"
    teachers = {"a": {"weights": str(teacher)}, "b": {"weights": str(teacher), "temperature": 0.1}}
    config = small_config(tokenizer, name="contrastive_distillation", teachers=teachers)
    config.mesh.fsdp = 2
    experiment.train(config, tmp_path / "student")

    config = small_config(tokenizer, name="prompt_learning")
    config.model.text.update(context_length=13, prompt_length=3, prompt_after=0)
    config.init.weights = str(teacher)
    config.init.fresh = ("text/prompt",)
    config.optim.freeze = ("(?!text/prompt).*",)
    config.evals.zeroshot = {"names": {"data": "emoji:heldout_base[:32]"}}
    found = experiment.train(config, tmp_path / "prompt")
    assert 0 <= found["zeroshot/names/top1"] <= 1
    before, after = (create_model(weights=tmp_path / x) for x in ("teacher", "prompt"))
    tokens = after.tokenize(["cat"])
    assert tokens.shape == (1, 13)
    assert np.isfinite(after.encode_text(tokens)).all()
    # All else is frozen, so that images have the embeddings of before.
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(after.encode_image(images), before.encode_image(images))
