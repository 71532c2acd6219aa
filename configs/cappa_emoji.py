"""CapPa on the embedded emoji: an encoder trained by captioning drawings with their names.

    python -m vit_jax.train --config configs/cappa_emoji.py --workdir runs/cappa_emoji

Result: of 191 names that are not in training, the most likely one is right for 7.5% of 375
drawings, and for 11.5% with the prior of names divided out; chance is 0.5%. Such names have a
perplexity of 27 per token of 1,024. Digits: 95.8% by a linear probe. One seed.
Time: six minutes on two CPU cores. Needs the extra [samples].
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

from . import clip_emoji


def get_config(arg: str = "") -> ConfigDict:
    """The data and the encoder of `clip_emoji.py`, with a decoder of two blocks."""
    clip = clip_emoji.get_config()
    config = default_config(model="cappa_emoji", objective="captioning", optimizer="muon")
    config.data.update(clip.data)
    config.data.templates = ("{}",)
    config.batch_size = 128
    config.total_steps = 575
    config.compute.scan = False  # unrolled blocks run faster on a CPU

    config.objective.parallel_fraction = 0.5
    config.optim.update(lr=2e-3, warmup_percent=6.0, weight_decay=0.2, b2=0.98, grad_clip_norm=1.0)

    config.evals.captioning = {"heldout_names": {"data": "emoji:heldout_names"}}
    names = {"data": "emoji:heldout_base", "classes": "present"}
    config.evals.caption_zeroshot = {
        "heldout_base": names,
        "heldout_base_prior": {**names, "prior": 1.0},
    }
    config.evals.probe = {"digits": {"train": "digits:train", "test": "digits:test"}}
    return config
