"""The emoji recipe with SigLIP's sigmoid loss: an ablation is a file that changes one thing.

python -m vit_jax.train --config configs/clip_emoji_siglip.py --workdir runs/clip_emoji_siglip
"""

import math

from ml_collections import ConfigDict

from configs import clip_emoji


def get_config(arg: str = "") -> ConfigDict:
    """The emoji recipe with another loss and the temperature and bias that SigLIP starts from."""
    config = clip_emoji.get_config(arg)
    config.objective.loss = "sigmoid"
    config.model.init_logit_scale = math.log(10.0)
    config.model.init_logit_bias = -10.0
    return config
