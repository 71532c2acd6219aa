"""CLIP from scratch on your own pairs of images and captions.

    python -m vit_jax.train --config configs/clip_your_pairs.py:PATH --workdir runs/my_clip

PATH is a table (.csv, .tsv, .jsonl, .parquet), a data set of Hugging Face, a folder of shards, a
folder of images with .txt files or with words in their names, or the spec of any source. Sizes,
tokenizer and held-out part are chosen by the data, and logged. Every key can be changed, as for any
recipe.

Result: 10.5% image-to-text recall at 1 among 203 held-out drawings (chance is 0.5%), after nine
epochs of 1,827 drawings with the words of their file names.
Time: three minutes of CPU time for this run. The whole of it is in docs/your_data.md.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config
from vit_jax.data.choices import find_pairs


def get_config(arg: str = "") -> ConfigDict:
    data = find_pairs(arg)
    sizes = data.sizes()
    vocab_size, context_length = data.vocabulary()

    config = default_config(model="clip_vit_emoji", objective="contrastive", optimizer="adamw")
    config.model.image = {**sizes.fields(), "patch_dropout": 0.5}
    config.model.text = {
        "vocab_size": vocab_size,
        "context_length": context_length,
        "width": sizes.width,
        "depth": max(4, sizes.depth // 2),
        "num_heads": sizes.num_heads,
        "mlp_dim": 4 * sizes.width,
    }
    config.model.embed_dim = sizes.width
    config.model.inputs.resize = "crop"

    config.data.train = data.train
    config.data.augment = "random_resized_crop(scale=(0.6, 1.0))"
    config.batch_size, config.total_epochs = data.schedule()
    config.compute.scan = sizes.depth > 6  # unrolled blocks run faster on a CPU
    config.optim.update(lr=1e-3, warmup_percent=6.0, weight_decay=0.2, b2=0.98, grad_clip_norm=1.0)

    config.eval_percent = 20.0
    config.evals.retrieval = {"held_out": {"data": data.held_out}}
    if data.num_classes:
        config.evals.zeroshot = {"held_out": {"data": data.held_out}}
    return config
