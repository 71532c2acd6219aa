"""Recipe of a tiny detector on scenes of emoji, for runs of several devices and processes."""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Four steps of 16 scenes, then average precision and the loss on held-out scenes.

    Args:
        arg: not used.
    """
    config = default_config(model="owl_emoji", objective="owl")
    tower = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}
    config.model.image.update(image_size=32, patch_size=8, **tower)
    config.model.text.update(vocab_size=400, context_length=8, **tower)
    config.model.embed_dim = 16
    config.data.train = "emoji_scenes:train?size=32&count=64"
    config.data.detection.update(max_boxes=6, max_queries=8, negatives=3)
    config.batch_size = 16
    config.total_steps = 4
    config.log_steps = 1
    config.checkpoint_percent = 0.0
    config.eval_batch_size = 12  # which eight devices do not divide
    config.optim.lr = 1e-3
    held_out = "emoji_scenes:test?size=32&count=20"
    config.evals.detection = {"scenes": {"data": held_out, "negatives": 5}}
    config.evals.validation_loss = {"scenes": {"data": held_out, "batch_size": 10}}
    return config
