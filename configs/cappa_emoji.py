"""CapPa on the embedded emoji: an encoder trained by captioning drawings with their names.

    python -m vit_jax.train --config configs/cappa_emoji.py --workdir runs/cappa_emoji

Result: not measured. The evaluations report the likelihood of the names of 620 drawings, generated
names, and zero-shot classification of 375 drawings by the likelihood of 191 names, none of which is
in training.
Time: not measured. Needs the extra [samples].
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
    config.total_steps = 1150
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
