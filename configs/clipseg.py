r"""CLIPSeg rd64 on PhraseCut (Lüddecke and Ecker 2022): the decoder alone, on CLIP's ViT-B/16.

    python -m vit_jax.train --config configs/clipseg.py --workdir DIR \
        --config.data.train="referring:train.jsonl?images=images" --config.init.weights=ViT-B-16.pt

Result: table 1 of the paper; nothing was measured here. Time: not published.
Planned for a TPU v5e 2x4 slice, 15 ms per step and 1.0 GiB per chip (the compiler's estimate):

    python -m vit_jax.plan --config configs/clipseg.py --topology v5e:2x4

Set `data.train` and `evals` to PhraseCut as `referring:`, a line per phrase, and `init.weights` to
CLIP. The settings are those of experiments/phrasecut.yaml in the authors' repository, except that
it names blocks 3, 7, 9 where the published weights are used with 3, 6, 9, as here. The authors
replace the phrase by one of another image with probability 0.2; here each image has both, with
weights of the same ratio. They also mix prompts of texts with those of example images (PhraseCut+),
crop squares that show the object, and use dropout of 0.1 in the decoder. `clipseg_rd64_refined` was
trained for 50,000 steps.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

# "shuffle+" in the authors' models/clipseg.py.
TEMPLATES = (
    "a photo of a {}.",
    "a photograph of a {}.",
    "an image of a {}.",
    "{}.",
    "a cropped photo of a {}.",
    "a good photo of a {}.",
    "a photo of one {}.",
    "a bad photo of a {}.",
    "a photo of the {}.",
)


def get_config(arg: str = "") -> ConfigDict:
    """The published recipe; both towers are frozen."""
    config = default_config(model="clipseg_rd64", objective="clipseg", optimizer="adamw")
    config.objective.negative_weight = 0.25  # 0.2 / (1 - 0.2)
    config.init.update(model="clip_vit_b16", fresh=("decoder/.*",))
    config.optim.freeze = ("(?!decoder).*",)

    config.data.train = "referring:train.jsonl?images=images"
    config.data.templates = TEMPLATES
    config.data.augment = "random_crop(scale=(0.5, 1))"
    config.data.detection.update(max_queries=2, negatives=1, mask_stride=1)
    config.data.workers = 16
    config.batch_size = 64
    config.total_steps = 20_000
    config.optim.update(lr=1e-3, min_lr=1e-4, weight_decay=0.01, b2=0.999, warmup_steps=0)
    config.compute.dtype = "bfloat16"
    config.evals.text_segmentation = {
        "test": {"data": "referring:test.jsonl?images=images", "threshold": 0.3}
    }
    return config
