r"""CapPa ViT-B/16: an image encoder trained by captioning (Tschannen et al. 2023).

    python -m vit_jax.train --config configs/cappa_b16.py --workdir DIR \
        --config.data.train=folder:/data/laion \
        '--config.model.tokenizer=sentencepiece:/data/c4_en.model?clean=lower&pad=<pad>'

Result: not published for this configuration, which big_vision gives for reference. The paper
evaluates encoders by probes (table 1), as the evaluators `probe` and `fewshot`. Time: not
published.

Set `data.train` to your pairs and `model.tokenizer` to a SentencePiece vocabulary of 32,000 ids, of
which 0 is padding (extra [sentencepiece]), and start the command on every host. With
`--config.objective.parallel_fraction=0` the model is Cap.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The reference configuration of big_vision."""
    config = default_config(model="cappa_b16", objective="captioning", optimizer="adafactor")

    config.data.train = "folder:/data/laion"
    config.data.workers = 16
    config.batch_size = 8192
    config.total_steps = 366_500

    config.objective.parallel_fraction = 0.75
    config.optim.update(lr=1e-3, schedule="cosine", warmup_steps=10_000, grad_clip_norm=1.0)
    config.optim.b2_cap = 0.999
    config.optim.weight_decay = 0.1  # big_vision's 1e-4, which is not multiplied by lr

    config.compute.dtype = "bfloat16"
    config.compute.remat = "mlp"
    config.checkpoint_percent = 1.0
    return config
