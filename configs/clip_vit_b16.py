"""CLIP ViT-B/16 (Radford et al. 2021): 68.3% zero-shot on ImageNet after 32 epochs of 400 M pairs.

What it takes on a TPU v5e-256 pod, without one (docs/plan.md has the output):

python -m vit_jax.plan --config configs/clip_vit_b16.py --topology v5e:16x16

To train, start this on every host of the pod:

python -m vit_jax.train --config configs/clip_vit_b16.py --workdir DIR \\
    --config.data.train=folder:/data/laion

On GPU hosts, with parameters split within a host of eight GPUs, again on every host:

python -m vit_jax.train --config configs/clip_vit_b16.py --workdir DIR --config.mesh.fsdp=8
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe; sharded for a pod."""
    config = default_config(model="clip_vit_b16")

    # Yours to set: images and captions. No such data set can be had offline.
    config.data.train = "folder:/data/laion"
    config.data.workers = 16
    config.batch_size = 32768
    config.total_epochs = 32.0

    config.optim.lr = 5e-4
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 2000
    config.optim.weight_decay = 0.2
    config.optim.b1 = 0.9
    config.optim.b2 = 0.98
    config.optim.eps = 1e-6

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    config.mesh.fsdp = 16  # one row of a 16 x 16 slice
    config.eval_batch_size = 2048
    config.checkpoint_percent = 1.0
    return config
