r"""SigLIP 2 ViT-B/16: pairs, captions, then self-distillation as well (Tschannen et al. 2025).

    python -m vit_jax.train --config configs/siglip2_b16.py --workdir DIR \
        --config.data.train=folder:/data/webli \
        '--config.model.tokenizer=gemma:/data/gemma.model?clean=lower'

Result: not measured here. Time: not published. Planned for a slice
(`--stage pairs`: the first 80%):

    python -m vit_jax.plan --config configs/siglip2_b16.py --topology v5e:16x16

The published recipe (section 2) without the decoder's boxes. For the last 20%, a teacher, the
moving average of the run, sees one crop of each image; the student sees eight small ones, and the
same crop with half of its patches masked. Sizes of crops and temperatures are those of SILC (Naeem
et al. 2024) and DINO; the decay of the teacher is DINO's. Heads have no weight decay.

Set `data.train` to your pairs and `model.tokenizer` to Gemma's vocabulary of 256,000 ids (extra
[sentencepiece]), and start the command on every host.
"""

from ml_collections import ConfigDict

from . import siglip_b16
from .dinov2_vits14 import COLORS


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of SigLIP with a decoder, whose loss has the weight of the sigmoid loss."""
    config = siglip_b16.get_config(arg)
    config.model = {"name": "siglip2_b16_pretraining"}
    pairs = {"loss": "sigmoid", "caption_weight": 1.0, "token_mean": False}
    pairs |= {"parallel_fraction": 0.5, "chunk_tokens": 512}  # 0.5 GB of logits per device
    # 0.25 is the weight for B; 0.5 for L and g, 1 for So400m.
    crops = {"centering": "mean", "teacher_temperature": 0.04, "weight": 0.25}
    crops |= {"ibot_weight": 0.25, "koleo_weight": 0.0}
    config.objective = {
        "name": "weighted_sum",
        "parts": {"contrastive_captioning": pairs, "self_distillation": crops},
    }
    without_crops = {"parts": {"self_distillation": {"weight": 0.0}}}
    config.grad_accum_steps = 2  # at the end; the stage without crops needs less memory
    config.stages.pairs = {
        "until_percent": 80.0,
        "objective": without_crops,
        "grad_accum_steps": 1,
    }

    config.data.crops.update(
        num_global=1,
        first=f"random_resized_crop(scale=(0.4, 1.0))|{COLORS}|gaussian_blur(1.0)",
        local=f"random_resized_crop(scale=(0.05, 0.4))|{COLORS}|gaussian_blur(0.5)",
        mask_ratio=(0.5, 0.5),
    )
    config.total_examples = 40_000_000_000
    config.optim.update(warmup_examples=0, warmup_steps=20_000, ema_decay=0.996)
    return config
