r"""CoCa ViT-B/32: contrast and captions (Yu et al. 2022), as open_clip has published it.

    python -m vit_jax.train --config configs/coca_b32.py --workdir DIR \
        --config.data.train=folder:/data/laion

Result: not measured here. Batch size and number of examples are those of open_clip's weights
`laion2b_s13b_b90k`; the other settings are those of `clip_vit_b32.py`. Time: not published.
Planned for a TPU v5e 16x16 slice: 0.84 s per step, 14.9 of 16 GiB.

Set `data.train` to your pairs, and start the command on every host. To train captions alone, as for
fine-tuning, add `--config.objective.contrastive_weight=0 --config.objective.caption_weight=1`.
"""

from ml_collections import ConfigDict

from . import clip_vit_b32


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of CLIP ViT-B/32 with another model and two losses."""
    config = clip_vit_b32.get_config(arg)
    config.model = {"name": "coca_vit_b32"}
    config.objective = {
        "name": "contrastive_captioning",
        "contrastive_weight": 1.0,
        "caption_weight": 2.0,
    }
    config.batch_size = 90_112
    config.update(total_epochs=0.0, total_examples=13_000_000_000)
    return config
