"""SigLIP ViT-B/16 (Zhai et al. 2023): 76.0% zero-shot on ImageNet with batches of 32,768.

What it takes on a TPU v5e-256 pod, without one (docs/plan.md has the output):

python -m vit_jax.plan --config configs/siglip_b16.py --topology v5e:16x16

To train, start this on every host of the pod, with SigLIP's own SentencePiece vocabulary of 32,000:

python -m vit_jax.train --config configs/siglip_b16.py --workdir DIR \\
    --config.data.train=folder:/data/webli \\
    --config.tokenizer=sentencepiece:/data/sentencepiece.model

On GPU hosts, with parameters split within a host of eight GPUs, again on every host:

python -m vit_jax.train --config configs/siglip_b16.py --workdir DIR --config.mesh.fsdp=8
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe; sharded for a pod."""
    config = default_config(model="siglip_b16")

    # Yours to set: images and captions. No such data set can be had offline.
    config.data.train = "folder:/data/webli"
    config.data.workers = 16
    config.batch_size = 32768
    config.total_examples = 9_000_000_000

    config.objective.loss = "sigmoid"
    config.optim.lr = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_examples = 200_000_000
    config.optim.weight_decay = 0.1  # big_vision's 1e-4, which it does not multiply by lr
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.grad_clip_norm = 1.0

    config.compute.dtype = "bfloat16"
    config.compute.scan = False
    config.compute.remat = "mlp"
    config.mesh.fsdp = 16  # one row of a 16 x 16 slice
    config.eval_batch_size = 2048
    config.checkpoint_percent = 1.0
    return config
