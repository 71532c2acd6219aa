"""Recipe of a tiny classifier of digits, for runs in separate processes."""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """ViT with 5,000 parameters; every step is logged."""
    config = default_config(model="deit_ti16", objective="classification")
    config.model.update(
        image_size=8, patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32, num_classes=10
    )
    config.model.inputs.crop_fraction = 1.0
    config.data.train = "digits:train"
    config.batch_size = 32
    config.total_steps = 400
    config.log_steps = 1
    config.checkpoint_percent = 0.0
    config.optim.lr = 3e-3
    return config
