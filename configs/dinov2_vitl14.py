r"""Self-distillation of ViT-L/14 on ImageNet-22k, without labels (DINOv2; Oquab et al. 2024).

    python -m vit_jax.train --config configs/dinov2_vitl14.py --workdir DIR \
        --config.data.train=folder:/data/imagenet22k

Result: 82.0% top-1 on ImageNet-1k by k-NN and 84.5% by a linear probe (published).
Time: 3.3 days on 96 A100 (published). Planned for a slice, where a step is estimated at
0.31 s:

    python -m vit_jax.plan --config configs/dinov2_vitl14.py --topology v5e:16x16

Set `data.train` to a folder of ImageNet-22k. The values are those of the authors'
`train/vitl14.yaml`.
"""

from ml_collections import ConfigDict

from . import dinov2_vits14


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe."""
    config = dinov2_vits14.get_config(arg)
    config.model.name = "dinov2_l14_pretraining"
    # SwiGLU; the released weights, distilled later, have an ordinary MLP.
    config.model.image.update(drop_path=0.4, gated_mlp=True, activation="silu", mlp_dim=2736)

    config.data.train = "folder:/data/imagenet22k"
    config.batch_size = 3072
    config.total_steps = 625_000  # 500 of the authors' epochs of 1,250 steps

    config.objective.update(
        centering="sinkhorn", teacher_warmup_percent=6.0, freeze_prototypes_percent=0.2
    )
    config.optim.lr = 2e-4 * (config.batch_size / 1024) ** 0.5
    config.optim.update(warmup_steps=100_000, final_weight_decay=0.2, layer_decay=1.0)
    config.optim.ema_decay = 0.994
    config.mesh.zero1 = True
    return config
