r"""OWL-ViT B/32 from CLIP, on Objects365 and Visual Genome (Minderer et al. 2022).

    python -m vit_jax.train --config configs/owlvit_b32.py --workdir DIR \
        --config.init.weights=clip-vit-base-patch32/

Result: 20.9 AP on LVIS, 16.9 on its rare classes (scenic's configuration). Time: not published.
Planned for a TPU v5e 4x8 slice:

    python -m vit_jax.plan --config configs/owlvit_b32.py --topology v5e:4x8

Set `init.weights` to CLIP's ViT-B/32, and `data.train` and `evals` to annotations in COCO's form;
for Visual Genome, a category per name. The settings are those of scenic's recipe. It differs in
these points: losses are divided by the number of boxes of the batch, not of each image; the
gradient is clipped as a whole; the text tower has no stochastic depth; overlapping boxes of one
object stay apart.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config
from vit_jax.evaluators import prompts


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe; the text tower has a lower learning rate."""
    config = default_config(model="owlvit_base_patch32", objective="owl", optimizer="adamw")
    config.model.image.drop_path = 0.2
    config.init.model = "clip_vit_b32"
    config.init.fresh = ("merged_norm/.*", ".*_head/.*")

    config.data.train = (
        "0.8*coco:objects365_train.json?images=objects365 + 0.2*coco:visual_genome.json?images=vg"
    )
    config.data.templates = prompts.templates("clip_imagenet")
    config.data.augment = "flip|random_crop(scale=(0.6, 1))|mosaic((0.4, 0.3, 0.3))"
    config.data.workers = 16
    config.batch_size = 256
    config.total_steps = 140_000
    config.optim.update(lr=5e-5, warmup_steps=1000, grad_clip_norm=1.0)
    config.optim.lr_factors = (("text.*", 0.04),)  # 2e-6

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    config.eval_batch_size = 64
    config.evals.detection = {
        "lvis": {
            "data": "coco:lvis_v1_val.json?images=coco",
            "style": "lvis",
            "templates": "clip_imagenet_7",
        }
    }
    return config
