r"""CLIP ViT-L/14 (Radford et al. 2021): `clip_vit_b16.py` with a larger model.

    python -m vit_jax.train --config configs/clip_vit_l14.py --workdir DIR \
        --config.data.train=folder:/data/laion

Result: 75.5% zero-shot on ImageNet after 32 epochs of 400 M pairs (published). Time: not published.
Planned for a TPU v5e 16x16 slice:

    python -m vit_jax.plan --config configs/clip_vit_l14.py --topology v5e:16x16

A batch of four million pairs on eight TPU v5p chips, as claimed by Inf-CL (Cheng et al. 2024), with
the exact gradient (docs/plan.md shows the output):

    python -m vit_jax.plan --config configs/clip_vit_l14.py --topology v5p:2x2x2 \
        --config.batch_size=4194304 --config.grad_accum_steps=4096 --config.mesh.fsdp=8 \
        --config.objective.form=tiled --config.compute.remat=full
"""

from ml_collections import ConfigDict

from . import clip_vit_b16


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of ViT-B/16 with another model and learning rate."""
    config = clip_vit_b16.get_config(arg)
    config.model = {"name": "clip_vit_l14"}
    config.optim.lr = 4e-4
    return config
