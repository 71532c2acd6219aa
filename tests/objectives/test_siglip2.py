"""All losses of SigLIP 2 on one batch: pairs, one global crop and local crops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import MEAN, STD, build, context, random_images, small_dino, small_vit

from vit_jax.data.crops import Crops, CropsConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.models.siglip2.model import SigLIP2Config

BATCH, LOCAL, MASKED = 8, 3, 12
SIZES = {"vocab_size": 13, "context_length": 5, "width": 16, "num_heads": 2, "mlp_dim": 12}
ARCHITECTURE = SigLIP2Config(
    image=small_vit(pool="map", class_token=False),
    text=TextConfig(**SIZES, depth=1, pool="last"),
    decoder=DecoderConfig(**SIZES, depth=1),
    embed_dim=16,
    image_projection=False,
    init_logit_bias=-10.0,
    head_dim=8,
    bottleneck=6,
    prototypes=12,
)
MODEL = ModelDef(ARCHITECTURE)
CROPS = Crops(
    CropsConfig(num_global=1, num_local=LOCAL, local_size=4, mask_ratio=(0.5, 0.5)), (4, 6)
)
PARTS = {
    "pairs": {"name": "contrastive_captioning", "loss": "sigmoid"},
    "crops": {
        "name": "self_distillation",
        "weight": 0.5,
        "ibot_weight": 0.25,
        "koleo_weight": 0.0,
        "centering": "mean",
        "prototypes_per_block": 6,
    },
}


def objective(**parts):
    small = context(ARCHITECTURE, microbatches=(2, 1), crops=CROPS, has_ema=True)
    return build("weighted_sum", small, parts={**PARTS, **parts})


@pytest.fixture(scope="module")
def case():
    """Parameters of student and teacher, a batch, and what the model sees of its crops."""
    rng, shapes = np.random.default_rng(0), MODEL.shapes()
    params = [
        jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
        for _ in range(2)
    ]
    pixels = [
        rng.integers(0, 256, (BATCH, n, *size, 3), np.uint8)
        for n, size in ((1, (8, 12)), (LOCAL, (4, 4)))
    ]
    mask = np.asarray([rng.permutation(24) < MASKED for _ in range(BATCH)])
    batch = {
        "image": np.asarray(random_images(BATCH)[0]),
        "tokens": rng.integers(1, 13, (BATCH, 5), np.int32),
        "global_crops": pixels[0].reshape(BATCH, -1),
        "local_crops": pixels[1].reshape(BATCH, -1),
        "patch_mask": mask[:, None],
        "progress": jnp.float32(0.9),
    }
    seen = [jnp.float32((x / 255 - np.asarray(MEAN)) / np.asarray(STD)) for x in pixels]
    return params, batch, seen, mask


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_losses(case):
    """Local crops follow the global one, masked patches their teacher's; the rest is a sum."""
    params, batch, (large, small), mask = case
    loss = objective()
    assert set(loss.fields) == batch.keys() - {"progress"}

    @jax.jit
    def logits(student, teacher):
        student, teacher = MODEL.bind(student), MODEL.bind(teacher)
        taught, taught_patches = teacher.encode_tokens(large[:, 0])
        local, _ = student.encode_tokens(small.reshape(-1, 4, 4, 3))
        _, patches = student.encode_tokens(large[:, 0], jnp.asarray(mask))
        own, theirs = (each.head for each in (student, teacher))
        found = [own(local), own(patches)], [theirs(taught), theirs(taught_patches)]
        kernels = own.prototypes(), theirs.prototypes()
        return [x @ kernel for group, kernel in zip(found, kernels, strict=True) for x in group]

    local, patches, taught, taught_patches = map(np.float64, logits(*params))
    centres = [np.float64(params[0][name]) for name in ("class_centre", "patch_centre")]
    p, q = (
        softmax((x - centre) / 0.07)
        for x, centre in zip((taught, taught_patches), centres, strict=True)
    )
    local = np.log(softmax(local.reshape(BATCH, LOCAL, -1) / 0.1))
    dino = -(p[:, None] * local).sum(-1).mean()
    ibot = -(q * np.log(softmax(patches / 0.1))).sum(-1)[mask].mean()

    (total, metrics) = jax.jit(
        lambda params, batch: loss(MODEL.bind(params[0]), batch, jax.random.key(0), params[1])
    )(params, batch)
    np.testing.assert_allclose(metrics["crops/dino_loss"], dino, rtol=2e-5)
    np.testing.assert_allclose(metrics["crops/ibot_loss"], ibot, rtol=2e-5)
    np.testing.assert_allclose(metrics["crops/loss"], dino + 0.25 * ibot, rtol=2e-5)
    np.testing.assert_allclose(total, metrics["pairs/loss"] + 0.5 * (dino + 0.25 * ibot), rtol=2e-5)
    assert {"pairs/contrastive_loss", "pairs/caption_loss"} < metrics.keys()


def test_the_first_stage_reads_pairs_alone():
    first = objective(crops={**PARTS["crops"], "weight": 0.0})
    assert (first.fields, first.reads_state) == (("image", "tokens"), ())


def test_heads_do_not_decay_while_they_wait():
    for model, decays in ((MODEL, False), (ModelDef(small_dino()), True)):
        head = model.metadata("decay")["head"]
        found = {head["kernel"], *(head[name]["kernel"] for name in ("fc1", "fc2", "fc3"))}
        assert found == {decays}
