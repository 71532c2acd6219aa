r"""SigLIP ViT-B/16 on WebLI (Zhai et al. 2023).

    python -m vit_jax.train --config configs/siglip_b16.py --workdir DIR \
        --config.data.train=folder:/data/webli \
        --config.model.tokenizer=sentencepiece:/data/sentencepiece.model

Result: 76.0% zero-shot on ImageNet with batches of 32,768 (published). Time: not published.
Planned for a TPU v5e 16x16 slice (docs/plan.md shows the output):

    python -m vit_jax.plan --config configs/siglip_b16.py --topology v5e:16x16

Set `data.train` to your pairs and `model.tokenizer` to SigLIP's SentencePiece vocabulary of 32,000
(extra [sentencepiece]), and start the command on every host. On hosts with eight GPUs each, add
`--config.mesh.fsdp=8` to shard the parameters within a host.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe, sharded for a pod."""
    config = default_config(model="siglip_b16", objective="contrastive", optimizer="adamw")

    config.data.train = "folder:/data/webli"
    config.data.workers = 16
    config.batch_size = 32_768
    config.total_examples = 9_000_000_000

    config.objective.loss = "sigmoid"
    config.optim.update(lr=1e-3, schedule="cosine", warmup_examples=200_000_000)
    config.optim.update(b1=0.9, b2=0.95, grad_clip_norm=1.0)
    config.optim.weight_decay = 0.1  # big_vision's 1e-4, which is not multiplied by lr

    config.compute.dtype = "bfloat16"
    config.compute.scan = False
    config.compute.remat = "mlp"
    config.mesh.fsdp = 16  # one row of a 16 x 16 slice
    config.eval_batch_size = 2048
    config.checkpoint_percent = 1.0
    return config
