"""CLIP on emoji in their own aspect ratios, in several lengths: NaFlex in minutes.

    python -m vit_jax.train --config configs/naflex_emoji.py --workdir runs/naflex_emoji
    python -m vit_jax.train --config configs/naflex_emoji.py:squash --workdir runs/squash_emoji

Result: 23.7% zero-shot top-1 over 191 held-out names, 37.4% recall at 5 of images, digits by a
linear probe 96.9%. Squashed to a square: 22.6, 36.0 and 96.1%. One seed of each: these differences
do not say which is better.
Time: eight CPU minutes per run. Needs the extra [samples].

The drawings have no margins: a flag is wide, a bottle is high. Each batch has at most 36, 64 or 100
patches per image.
"""

from ml_collections import ConfigDict

from vit_jax.errors import check_name

from . import clip_emoji


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of `clip_emoji` on drawings without margins, in fewer steps.

    Args:
        arg: how a drawing is fitted into the patches: "naflex" (default) or "squash", see
            `ImageInputs.resize`.
    """
    resize = arg or "naflex"
    check_name(resize, ("naflex", "squash"), "argument of naflex_emoji:")
    config = clip_emoji.get_config()
    config.model = {"name": "clip_vit_emoji", "inputs": {"resize": resize}}
    config.draw.model = {"image": {"image_size": ((24, 24), (32, 32), (40, 40))}}
    config.batch_size = 128
    config.total_steps = 500

    def trim(data: str) -> str:
        return f"{data}?trim=true"

    config.data.train = trim(config.data.train)
    for evaluation in (*config.evals.zeroshot.values(), *config.evals.retrieval.values()):
        evaluation.data = trim(evaluation.data)
    return config
