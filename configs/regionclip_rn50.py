r"""RegionCLIP with ResNet-50 (Zhong et al. 2022): regions of images with captions named by CLIP.

    python -m vit_jax.train --config configs/regionclip_rn50.py --workdir DIR \
        --config.data.train="grounding:cc3m.jsonl?images=cc3m" --config.init.weights=RN50.pt \
        --config.objective.teacher_weights=RN50.pt --config.objective.concepts=concepts.txt

Result: table 4 of the paper compares it with CLIP on annotated boxes; nothing was measured here.
Time: not published. Planned for a TPU v5e 4x8 slice:

    python -m vit_jax.plan --config configs/regionclip_rn50.py --topology v5e:4x8

Set `data.train` to captions with proposals, of which 100 per image are drawn; `init.weights` and
`teacher_weights` to weights of CLIP; and `concepts` to a list of nouns. The authors use 300
proposals per image of a detector that was trained on LVIS, and 4,764 nouns of COCO's captions.
Here images have one size instead of shorter sides of 640 to 800 px, the rate follows a cosine
instead of steps at 300,000 and 525,000, and gradients are clipped as a whole.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config
from vit_jax.evaluators import prompts


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe: text tower, batch norms and the first layers are frozen."""
    config = default_config(model="regionclip_rn50", objective="region_text", optimizer="sgd")
    config.objective.teacher_model = "regionclip_rn50"
    config.objective.templates = prompts.templates("clip_imagenet")
    config.init.model = "clip_rn50"
    config.optim.freeze = (
        *("text.*", "logit_scale", "image/stem.*", "image/stage0/.*"),
        r"image/.*norm\d?/.*",
    )

    config.data.train = "grounding:cc3m.jsonl?images=cc3m"
    config.data.augment = "flip"
    config.data.detection.max_boxes = 100
    config.data.workers = 16
    config.batch_size = 96
    config.total_steps = 600_000
    config.optim.update(lr=0.002, momentum=0.9, warmup_steps=1000, grad_clip_norm=5.0)
    config.optim.weight_decay = 1e-4

    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"
    config.evals.region_classification = {
        "coco": {
            "data": "coco:instances_val2017.json?images=val2017",
            "templates": "clip_imagenet",
        }
    }
    return config
