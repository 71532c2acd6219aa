"""Short runs of dual encoders: several captions per image, distillation, learned prompts."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import create_model, experiment
from vit_jax.errors import UserError
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
    config = small_config()  # larger images, other texts
    config.model.image.image_size, config.model.text.vocab_size = 40, 400
    config.model.text.context_length = 12
    experiment.train(config, tmp_path / "other")
    teachers = {
        "a": {"weights": str(teacher)},
        "b": {"weights": str(teacher), "temperature": 0.1},
        "c": {"weights": str(tmp_path / "other")},
    }
    config = small_config(tokenizer, name="contrastive_distillation", teachers=teachers)
    config.mesh.fsdp = 2
    config.evals.validation_loss = {
        "held_out": {"data": "emoji:heldout_base[:32]", "batch_size": 32}
    }
    run = experiment.build(config)
    batch = next(run.loader)
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
        k: (x.shape, x.dtype) for k, x in run.abstract_batch.items()
    }
    assert len(batch) == 3
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

    config = small_config(tokenizer, name="prompt_learning")
    config.data.train = "digits:train[:160]"
    config.model.text.update(context_length=14, prompt_length=3, prompt_after=0, prompt_classes=10)
    config.init.weights = str(teacher)
    config.init.fresh = ("text/prompt",)
    config.optim.freeze = ("(?!text/prompt).*",)
    config.evals.zeroshot = {"digits": {"data": "digits:test[:32]"}}
    found = experiment.train(config, tmp_path / "own")
    assert 0 <= found["zeroshot/digits/top1"] <= 1
    own = create_model(weights=tmp_path / "own")
    embedded = own.encode_text(own.tokenize(["3", "1"]), normalize=True)
    vectors = own.params["text"]["prompt"]
    assert vectors.shape == (10, 3, 16)
    swapped = own.params["text"] | {"prompt": vectors.at[np.asarray([1, 3])].set(0.0)}
    changed = own.definition.bind({**own.params, "text": swapped})
    others = changed.encode_text(jnp.asarray(own.tokenize(["3", "2"])), normalize=True)
    assert not np.allclose(others[0], embedded[0], atol=1e-3)
    np.testing.assert_allclose(
        others[1], own.encode_text(own.tokenize(["2"]), normalize=True)[0], rtol=1e-4, atol=1e-6
    )
    with pytest.raises(UserError, match=r"expected '0', '1', .*; found 'cat'"):
        own.tokenize(["cat", "2"])
