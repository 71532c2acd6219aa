r"""DINO and iBOT on your own images, without labels, from scratch or from published weights.

    python -m vit_jax.train --config configs/dino_your_images.py:PATH --workdir runs/my_dino

    python -m vit_jax.train --config configs/dino_your_images.py:PATH --workdir runs/my_dino \
        --config.model=dinov2_s14_pretraining --config.data.crops.local_size=98 \
        --config.init.weights=dinov2_vits14.pth --config.init.model=dinov2_s14 \
        --config.init.fresh="('head/.*', 'mask_token', '.*_centre')" --config.optim.lr=1e-4

The heads of published weights start anew. PATH is a folder of images, a table, a data set of
Hugging Face, a folder of shards, or the spec of any source. Where there are classes, a tenth of the
images is held out to classify them. Sizes and held-out part are chosen by the data, and logged.
Every key can be changed, as for any recipe.

Result: 61.5% of 812 held-out drawings of 22 folders by their 10 nearest neighbors, 57.5% before;
54.1% and 54.7% by a linear probe, after 300 steps of 64.
Time: eleven minutes of CPU time for this run. The whole of it is in docs/your_data.md.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config
from vit_jax.data.choices import find_images


def get_config(arg: str = "") -> ConfigDict:
    data = find_images(arg)
    sizes = data.sizes()

    config = default_config("dinov2_s14_pretraining", objective="self_distillation")
    # Without LayerScale and with larger weights, class tokens differ from the start.
    config.model.image.update(**sizes.fields(), layer_scale=0.0, weight_init="xavier")
    config.model.update(head_dim=512, bottleneck=128, prototypes=1024)
    config.model.inputs.crop_fraction = 1.0

    colors = "flip|color_jitter(0.2, 0.2, 0.2, 0.05, probability=0.8)|grayscale(0.1)"
    config.data.train = data.train
    config.data.augment = f"random_resized_crop(scale=(0.4, 1.0))|{colors}"
    config.data.crops.local = f"random_resized_crop(scale=(0.1, 0.4))|{colors}"
    # Three sevenths of the side, as 98 of 224 px, in whole patches.
    local = max(2, round(sizes.image_size / sizes.patch_size * 3 / 7)) * sizes.patch_size
    config.data.crops.update(local_size=local, num_local=4)
    config.batch_size, config.total_epochs = data.schedule()
    config.compute.scan = sizes.depth > 6  # unrolled blocks run faster on a CPU

    config.objective.update(teacher_temperature=0.04)
    config.optim.update(lr=2e-3, warmup_percent=10.0, weight_decay=0.04, grad_clip_norm=3.0)
    config.optim.update(ema_decay=0.99, ema_schedule="cosine")

    config.eval_percent = 20.0
    if data.held_out:
        held_out = {"train": data.train, "test": data.held_out}
        config.evals = {"knn": {"held_out": held_out}, "probe": {"held_out": held_out}}
    return config
