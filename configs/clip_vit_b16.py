r"""CLIP ViT-B/16 on 400 M image-text pairs (Radford et al. 2021).

    python -m vit_jax.train --config configs/clip_vit_b16.py --workdir DIR \
        --config.data.train=folder:/data/laion

Result: 68.3% zero-shot on ImageNet after 32 epochs (published). Time: not published.
Planned for a TPU v5e 16x16 slice (docs/plan.md shows the output):

    python -m vit_jax.plan --config configs/clip_vit_b16.py --topology v5e:16x16

Set `data.train` to your pairs, and start the command on every host. On hosts with eight GPUs each,
add `--config.mesh.fsdp=8` to shard the parameters within a host.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe, sharded for a pod."""
    config = default_config(model="clip_vit_b16", objective="contrastive", optimizer="adamw")

    config.data.train = "folder:/data/laion"
    config.data.workers = 16
    config.batch_size = 32_768
    config.total_epochs = 32.0

    config.optim.update(lr=5e-4, schedule="cosine", warmup_steps=2000, weight_decay=0.2)
    config.optim.update(b1=0.9, b2=0.98, eps=1e-6)

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    config.mesh.fsdp = 16  # one row of a 16 x 16 slice
    config.eval_batch_size = 2048
    config.checkpoint_percent = 1.0
    return config
