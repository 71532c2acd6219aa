"""FLIP ViT-L/16 (Li et al. 2023): CLIP of which every second patch is left out.

Published: zero-shot on ImageNet 74.3% after 32 epochs of LAION-400M and a short tuning on whole
images: --config.init.weights=DIR --config.model.image.patch_dropout=0 --config.total_epochs=0.32.
The authors' text tower reads WordPiece, ours CLIP's tokens.

The paper's metric 1 has hours on 256 cores of TPU v3.

Planned for a slice of TPU v5e, 16x16:

python -m vit_jax.plan --config configs/flip_l16.py --topology v5e:16x16

On every host of the slice, or of GPUs:

python -m vit_jax.train --config configs/flip_l16.py --workdir DIR \\
    --config.data.train=folder:/data/laion
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe; sharded for a pod."""
    config = default_config(model="openclip_vit_l14")
    with config.unlocked():
        config.model.image = default_config(model="vit_l16").model
    config.model.image.update(num_classes=0, pool="mean", position_init="sincos", patch_dropout=0.5)
    config.model.text.update(num_heads=12, causal=False, context_length=32)

    config.data.train = "folder:/data/laion"  # yours to set
    config.data.augment = "random_resized_crop(scale=(0.5, 1.0))|flip"
    config.data.workers = 16
    config.batch_size = 65_536
    config.total_examples = 12_800_000_000
    config.optim.lr = 4e-6 * config.batch_size / 256
    config.optim.warmup_examples = 20 * 1_281_167
    config.optim.weight_decay = 0.2
    config.optim.b2 = 0.95

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    config.mesh.fsdp = 16  # one row of a 16 x 16 slice
    config.eval_batch_size = 2048
    config.checkpoint_percent = 1.0
    return config
