r"""FLIP ViT-L/16 (Li et al. 2023): CLIP that drops half of the patches in training.

    python -m vit_jax.train --config configs/flip_l16.py --workdir DIR \
        --config.data.train=folder:/data/laion

Result: 74.3% zero-shot on ImageNet after 32 epochs of LAION-400M and a short tuning on whole images
(published): start again from the result with `--config.init.weights=DIR
--config.model.image.patch_dropout=0 --config.total_epochs=0.32`. The authors' text tower uses
WordPiece; this recipe uses CLIP's tokenizer. Time: see figure 1 of the paper (256 TPU v3 cores).
Planned for a TPU v5e 16x16 slice:

    python -m vit_jax.plan --config configs/flip_l16.py --topology v5e:16x16

Set `data.train` to your pairs, and start the command on every host.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe, sharded for a pod."""
    config = default_config(model="openclip_vit_l14", objective="contrastive", optimizer="adamw")
    config.model.image = {
        "name": "vit_l16",
        "num_classes": 0,
        "pool": "mean",
        "position_init": "sincos",
        "patch_dropout": 0.5,
    }
    config.model.text.update(num_heads=12, causal=False, context_length=32)

    config.data.train = "folder:/data/laion"
    config.data.augment = "random_resized_crop(scale=(0.5, 1.0))|flip"
    config.data.workers = 16
    config.batch_size = 65_536
    config.total_examples = 12_800_000_000
    config.optim.lr = 4e-6 * config.batch_size / 256
    config.optim.update(warmup_examples=20 * 1_281_167, weight_decay=0.2, b2=0.95)

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    config.mesh.fsdp = 16  # one row of a 16 x 16 slice
    config.eval_batch_size = 2048
    config.checkpoint_percent = 1.0
    return config
