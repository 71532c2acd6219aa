"""Ablation of `clip_emoji.py`: SigLIP's sigmoid loss in place of the softmax loss.

    python -m vit_jax.train --config configs/clip_emoji_siglip.py --workdir runs/clip_emoji_siglip

Time: about ten minutes on two CPU cores. Needs the extra [samples].
"""

import math

from ml_collections import ConfigDict

from . import clip_emoji


def get_config(arg: str = "") -> ConfigDict:
    """The emoji recipe with SigLIP's loss, initial temperature and bias."""
    config = clip_emoji.get_config(arg)
    config.objective.loss = "sigmoid"
    config.model.init_logit_scale = math.log(10.0)
    config.model.init_logit_bias = -10.0
    return config
