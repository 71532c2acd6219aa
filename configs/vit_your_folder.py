r"""ViT on your own images with classes, from scratch or fine-tuned.

    python -m vit_jax.train --config configs/vit_your_folder.py:PATH --workdir runs/my_vit

    python -m vit_jax.train --config configs/vit_your_folder.py:PATH --workdir runs/my_vit \
        --config.model='{"name": "vit_b16", "num_classes": N}' --config.optim.lr=1e-4 \
        --config.init.weights=WEIGHTS

PATH is a folder with one sub-folder per class, a table, a data set of Hugging Face, a folder of
shards, or the spec of any source. Classes, sizes and held-out part are chosen by the data, and
logged. Every key can be changed, as for any recipe.

Result: 50% top-1 on 142 drawings of four classes after eight epochs of 1,232, from scratch.
Time: two minutes of CPU time for this run. The whole of it is in docs/your_data.md.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config
from vit_jax.data.choices import find_folder


def get_config(arg: str = "") -> ConfigDict:
    data = find_folder(arg)
    sizes = data.sizes()

    config = default_config(model="vit_ti16", objective="classification", optimizer="adamw")
    # The image encoder of `clip_your_pairs.py`, whose runs can initialise this one.
    config.model.update(**sizes.fields(), class_token=False, pool="mean", position_init="sincos")
    config.model.update(num_classes=data.num_classes, drop_path=0.1)
    config.model.inputs.crop_fraction = 1.0

    config.data.train = data.train
    config.data.augment = "random_resized_crop(scale=(0.35, 1.0))|flip|color_jitter(0.2, 0.2, 0.2)"
    config.batch_size, config.total_epochs = data.schedule()
    config.compute.scan = sizes.depth > 6  # unrolled blocks run faster on a CPU

    config.objective.label_smoothing = 0.1
    config.optim.update(lr=1e-3, warmup_percent=5.0, weight_decay=0.05, grad_clip_norm=1.0)

    config.eval_percent = 20.0
    config.evals.classification = {"held_out": {"data": data.held_out}}
    return config
