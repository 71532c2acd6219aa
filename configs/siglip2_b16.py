r"""SigLIP 2 ViT-B/16: sigmoid loss and captions in one step (Tschannen et al. 2025).

    python -m vit_jax.train --config configs/siglip2_b16.py --workdir DIR \
        --config.data.train=folder:/data/webli \
        '--config.model.tokenizer=gemma:/data/gemma.model?clean=lower'

Result: not measured here. Time: not published.

This is the first stage of the published recipe (section 2.2) without its boxes: the decoder learns
captions, but neither referring expressions nor captions of regions. Self-distillation and masked
prediction, which join after 80% of training (section 2.3), are not part of this recipe.

Set `data.train` to your pairs and `model.tokenizer` to Gemma's vocabulary of 256,000 ids (extra
[sentencepiece]), and start the command on every host.
"""

from ml_collections import ConfigDict

from . import siglip_b16


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of SigLIP with a decoder, whose loss has the weight of the sigmoid loss."""
    config = siglip_b16.get_config(arg)
    config.model = {"name": "siglip2_b16_captioner"}
    config.objective = {
        "name": "contrastive_captioning",
        "loss": "sigmoid",
        "contrastive_weight": 1.0,
        "caption_weight": 1.0,
        "token_mean": False,
        "parallel_fraction": 0.5,
        "chunk_tokens": 512,  # 0.5 GB of logits per device
    }
    config.total_examples = 40_000_000_000
    config.optim.update(warmup_examples=0, warmup_steps=20_000)
    return config
