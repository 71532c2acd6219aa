r"""SigLIP 2 NaFlex ViT-B/16: native aspect ratios, several lengths (Tschannen et al. 2025).

    python -m vit_jax.train --config configs/naflex_b16.py --workdir DIR \
        --config.data.train=folder:/data/webli \
        '--config.model.tokenizer=gemma:/data/gemma.model?clean=lower'

Result: not measured here. Time: not published.
Planned for a TPU v5e 16x16 slice, where a step of the longest length is estimated at 1.06 s and
8.4 GiB; `--variant` plans another one:

    python -m vit_jax.plan --config configs/naflex_b16.py --topology v5e:16x16

Images keep their aspect ratio, and each batch draws the number of patches per image: 128, 256, 576,
784 or 1,024 (section 2.4.2). `token_budget` cuts the batches of longer sequences into microbatches,
so that a device processes at most 32,768 patches at once; the loss sees the whole batch.

The authors do not start here: they continue from 90% of the training of SigLIP 2, decoder included,
with 3.75 times the remaining examples. This recipe has the schedule of `siglip_b16.py` and the
sigmoid loss alone. To continue from weights of SigLIP 2, set `init.weights` and
`init.model=siglip2_b16_256`, `optim.lr=2.5e-5` and `optim.warmup_examples=0`.

Set `data.train` to your pairs and `model.tokenizer` to Gemma's vocabulary of 256,000 ids (extra
[sentencepiece]), and start the command on every host.
"""

from ml_collections import ConfigDict

from vit_jax.inputs.patches import size_of_budget

from . import siglip_b16

LENGTHS = (128, 256, 576, 784, 1024)  # patches per image


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of SigLIP with one of several lengths per step."""
    config = siglip_b16.get_config(arg)
    config.model = {"name": "siglip2_b16_naflex"}
    sizes = tuple(size_of_budget(length, patch_size=16) for length in LENGTHS)
    config.draw.model = {"image": {"image_size": sizes}}
    config.token_budget = 32_768  # 128 images of 256 patches per device
    return config
