"""Softmax loss (CLIP) against sigmoid loss (SigLIP), on the embedded emoji.

    vit-jax sweep --config ablations/clip_loss --workdir runs/clip_loss

Result: see docs/ablations.md. Time: four CPU minutes per run. Needs the extra [samples].
"""

import math

from ml_collections import ConfigDict

from vit_jax.recipes import load_recipe
from vit_jax.sweeping import seeds
from vit_jax.sweeping.grids import Variants


def get_config(arg: str = "") -> ConfigDict:
    """The recipe `clip_emoji` with a ninth of its examples."""
    return load_recipe("clip_emoji", ("batch_size=128", "total_examples=32768"))


def get_sweep() -> Variants:
    """Both losses; the sigmoid loss starts from SigLIP's temperature and bias (section 3.2)."""
    sigmoid = {
        "objective.loss": "sigmoid",
        "model.init_logit_scale": math.log(10),
        "model.init_logit_bias": -10.0,
    }
    return seeds({"softmax": {}, "sigmoid": sigmoid}, 3)
