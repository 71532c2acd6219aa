"""The objective of DINO, iBOT and DINOv2 with a small model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contexts import MEAN, STD, build, context, small_dino, small_vit, step_on_devices

from vit_jax.data.crops import Crops, CropsConfig
from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef
from vit_jax.training.schedules import ema_schedule
from vit_jax.training.state import TrainState
from vit_jax.training.step import make_train_step

BATCH, LOCAL, MASKED = 16, 2, 6
CROPS = Crops(CropsConfig(local_size=4, num_local=LOCAL, mask_ratio=(0.1, 0.25)), (4, 6))
KEYS = {
    "teacher_temperature": 0.08,
    "warmup_teacher_temperature": 0.04,
    "teacher_warmup_percent": 40.0,
    "freeze_prototypes_percent": 20.0,
    "prototypes_per_block": 6,
}
PROGRESS = 0.3  # of the warm-up three quarters: a temperature of 0.07
TEMPERATURE = 0.07


def objective(architecture=None, microbatches=(1, 1), *, crops=CROPS, has_ema=True, **keys):
    fields = {"crops": crops, "has_ema": has_ema}
    small = context(architecture or small_dino(), microbatches=microbatches, **fields)
    return build("self_distillation", small, **{**KEYS, **keys})


def crops_of(seed=0):
    """A batch, and float64 what the model sees of it, (B, crops, H, W, 3)."""
    rng = np.random.default_rng(seed)
    pixels = [
        rng.integers(0, 256, (BATCH, n, *size, 3)).astype(np.uint8)
        for n, size in ((2, (8, 12)), (LOCAL, (4, 4)))
    ]
    mask = np.zeros((BATCH, 2, 24), np.bool_)
    for one in mask:
        one[rng.integers(2), rng.permutation(24)[: rng.integers(1, MASKED + 1)]] = True
    packed = [x.reshape(BATCH, -1) for x in pixels]
    batch = {"global_crops": packed[0], "local_crops": packed[1], "patch_mask": mask}
    seen = [(x / 255 - np.asarray(MEAN)) / np.asarray(STD) for x in pixels]
    return {**batch, "progress": jnp.float32(PROGRESS)}, seen, mask


@pytest.fixture(scope="module")
def params():
    """Random parameters of student and teacher."""
    rng, shapes = np.random.default_rng(1), ModelDef(small_dino()).shapes()

    def draw():
        return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)

    return draw(), draw()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def balanced(logits):
    """Three iterations of Sinkhorn and Knopp over all tokens (tokens, prototypes)."""
    q = np.exp(logits / TEMPERATURE)
    for _ in range(3):
        q /= q.sum(0)
        q /= q.sum(1, keepdims=True)
    return q


@jax.jit
def embeddings(params, images, small, mask):
    """Class tokens of the student, and the logits of both networks."""
    student, teacher = (ModelDef(small_dino()).bind(p) for p in params)
    tokens, patches = student.encode_tokens(images, mask)
    taught, taught_patches = teacher.encode_tokens(images)
    return (
        tokens,
        student.head(tokens) @ student.head.prototypes(),
        student.head(student.encode_image(small)) @ student.head.prototypes(),
        teacher.head(taught) @ teacher.head.prototypes(),
        student.patch_head(patches) @ student.patch_head.prototypes(),
        teacher.patch_head(taught_patches) @ teacher.patch_head.prototypes(),
    )


def expected_losses(params, seen, mask):
    """From the logits of single crops, in float64 and in the loops of the papers."""
    images, small = (jnp.asarray(x.reshape(-1, *x.shape[2:]), jnp.float32) for x in seen)
    tokens, own, local, theirs, own_patches, their_patches = (
        np.asarray(x, np.float64)
        for x in embeddings(params, images, small, jnp.asarray(mask.reshape(-1, 24)))
    )
    p = balanced(theirs).reshape(BATCH, 2, -1)
    views = np.concatenate([x.reshape(BATCH, -1, 12) for x in (own, local)], axis=1)
    pairs = [(t, v) for t in range(2) for v in range(2 + LOCAL) if v != t]
    cross = [-(p[:, t] * np.log(softmax(views[:, v] / 0.1))).sum(-1).mean() for t, v in pairs]

    flat = mask.reshape(-1)
    q = np.log(softmax(own_patches.reshape(-1, 18)[flat] / 0.1))
    losses = np.zeros(flat.shape)
    losses[flat] = -(balanced(their_patches.reshape(-1, 18)[flat]) * q).sum(-1)
    by_crop = losses.reshape(2 * BATCH, 24).sum(1) / np.maximum(mask.reshape(-1, 24).sum(1), 1)

    features = tokens.reshape(BATCH, 2, -1)
    koleo = 0.0
    for crop in range(2):
        x = features[:, crop] / np.linalg.norm(features[:, crop], axis=-1, keepdims=True)
        distances = np.linalg.norm(x[:, None] - x[None], axis=-1) + 10 * np.eye(BATCH)
        koleo -= np.log(distances.min(1)).mean()
    return {"dino_loss": np.mean(cross), "ibot_loss": by_crop.mean(), "koleo_loss": koleo}


@pytest.fixture(scope="module")
def cut(params):
    """Loss, metrics and gradients of a batch on eight devices in two microbatches."""
    batch, _, _ = crops_of()
    return run(objective(microbatches=(2, 8)), params, batch, devices=8)


def run(loss, params, batch, devices):
    student, teacher = params
    progress = batch["progress"]
    crops = {name: batch[name] for name in loss.fields}

    class Bound:  # an objective of the crops alone, which are sharded
        context = loss.context

        def __call__(self, model, crops, rng):
            value, metrics = loss(model, {**crops, "progress": progress}, rng, teacher)
            return value, {**metrics, "statistics": self.context.model.statistics(model)}

    return step_on_devices(Bound(), student, crops, devices)


def test_losses_are_those_of_the_papers(params, cut):
    """Over the global batch, though eight devices share it in two microbatches."""
    _, seen, mask = crops_of()
    (loss, metrics), _ = cut
    expected = expected_losses(params, seen, mask)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(metrics["teacher_temperature"], TEMPERATURE, rtol=1e-6)
    weighted = expected["dino_loss"] + expected["ibot_loss"] + 0.1 * expected["koleo_loss"]
    np.testing.assert_allclose(loss, weighted, rtol=2e-5)


@pytest.mark.release
def test_eight_devices_and_two_microbatches_change_nothing(params, cut):
    """Neither the balance of the prototypes nor the nearest neighbours, nor any gradient."""
    batch, _, _ = crops_of()
    whole = run(objective(), params, batch, devices=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), whole, cut)


def test_what_learns(cut):
    _, gradients = cut
    for name in ("class_centre", "patch_centre"):
        assert not np.asarray(gradients[name]).any()
    for path in ("head", "own_patch_head"):
        assert np.asarray(gradients[path]["kernel"]).any()
    assert np.asarray(gradients["mask_token"]).any()


@pytest.mark.release
def test_centring_with_frozen_prototypes(params):
    """With one head for both, patches have a centre of their own; DINO's first steps."""
    architecture = small_dino(patch_prototypes=0)
    loss = objective(architecture, centering="mean", freeze_prototypes_percent=50.0)
    student, teacher = ({k: v for k, v in p.items() if k != "own_patch_head"} for p in params)
    for one in (student, teacher):
        one["patch_centre"] = one["class_centre"][::-1]
    batch, _, mask = crops_of()
    (_, metrics), gradients = run(loss, (student, teacher), batch, devices=1)
    assert not np.asarray(gradients["head"]["kernel"]).any()
    assert np.asarray(gradients["head"]["fc3"]["kernel"]).any()

    @jax.jit
    def logits(params):
        module, inputs = ModelDef(architecture).bind(params), loss.context.spec.inputs
        images = inputs.normalize(batch["global_crops"].reshape(-1, inputs.packed_size))
        tokens, patches = module.encode_tokens(images)
        return [module.head(x) @ module.head.prototypes() for x in (tokens, patches)]

    of_class, of_patches = logits(teacher)
    of_patches = of_patches.reshape(-1, 12)[mask.reshape(-1)]
    for name, x in (("class_centre", of_class), ("patch_centre", of_patches)):
        expected = 0.9 * student[name] + 0.1 * x.mean(0)
        np.testing.assert_allclose(metrics["statistics"][name], expected, atol=1e-5)


def test_the_step_gives_the_moving_average_before_it():
    """With a toy loss; the average moves by the published schedule, the anchor every other step."""
    model, sgd, total = ModelDef(small_vit()), optax.sgd(16.0), 4

    def loss(module, batch, rng, ema, anchor):
        metrics = {"teacher": ema["norm"]["scale"][0], "anchor": anchor["norm"]["scale"][0]}
        return jnp.mean(module.norm.scale[...]), metrics

    loss.reads_state = ("ema", "anchor")
    loss.renews_anchor = lambda step, total: step % 2 == 0
    step = make_train_step(
        model, loss, sgd, lambda count: 0.0, seed=0, total_steps=total,
        ema_decay=ema_schedule("cosine", 0.8, total),
    )  # fmt: skip
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), model.shapes())
    state = TrainState(jnp.asarray(0), params, sgd.init(params), params, params)
    step, student, teacher, anchor = jax.jit(step), 1.0, 1.0, 1.0
    for n in range(total):
        state, metrics = step(state, {})
        anchor = teacher if n % 2 == 0 else anchor
        found = [metrics[name] for name in ("teacher", "anchor")]
        np.testing.assert_allclose(found, [teacher, anchor], rtol=1e-5)
        student -= 1.0  # the gradient is 1 / 16, the learning rate 16
        decay = 1 - 0.2 * (1 + np.cos(np.pi * n / total)) / 2
        teacher = decay * teacher + (1 - decay) * student
    np.testing.assert_allclose(state.ema["norm"]["scale"], teacher, rtol=1e-5)


def test_without_masks_and_local_crops():
    crops = dataclasses.replace(CROPS, config=CropsConfig(num_local=0))
    assert objective(crops=crops, ibot_weight=0.0).fields == ("global_crops",)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"prototypes_per_block": 5},
            "prototypes_per_block=5: expected a divisor of the model's 12",
        ),
        ({"centering": "centring"}, "centering"),
        ({"student_temperature": 0.0}, "student_temperature=0.0: expected a number of at least"),
        ({"has_ema": False}, r"config\.optim\.ema_decay=0: the teacher of 'self_distillation' is"),
        ({"architecture": small_vit()}, "needs a ViT with projection heads.*found ViTConfig"),
        (
            {"crops": dataclasses.replace(CROPS, config=CropsConfig(local_size=5))},
            "config.data.crops.local_size=5",
        ),
        (
            {"crops": dataclasses.replace(CROPS, config=CropsConfig(num_global=1, num_local=0))},
            "num_global=1, num_local=0: expected another crop",
        ),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(UserError, match=message):
        objective(**keys)


def test_there_is_no_loss_of_held_out_images(params):
    loss = objective()
    with pytest.raises(UserError, match="has no loss of held-out images"):
        loss.evaluate(None, {}, params[1])


@pytest.mark.parametrize("changes", [{"pool": "mean"}, {"patch_dropout": 0.5}])
def test_backbones_that_do_not_fit(changes):
    with pytest.raises(UserError, match=r"pool='mean'|patch_dropout=0\.5"):
        small_dino(image=small_vit(**changes))
