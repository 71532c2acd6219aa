"""Training, evaluation and planning of dual encoders whose images keep their aspect ratio."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.helpers import metrics_of, tiny_clip
from tests.objectives.contexts import build, small_vit
from tests.objectives.contexts import context as context_of
from vit_jax import experiment
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.exporting.programs import programs
from vit_jax.flops import traced_flops
from vit_jax.inputs import ImageInputs
from vit_jax.models.spec import ModelSpec
from vit_jax.objectives.microbatches import Microbatches
from vit_jax.planning.compilation import trace_step
from vit_jax.pretrained.model import PretrainedModel


def naflex_clip():
    """`tiny_clip` with a NaFlex image tower of 16 patches."""
    config = tiny_clip()
    config.model.inputs = {"resize": "naflex", "interpolation": "bilinear"}
    config.model.image.update(
        image_size=16, pool="map", position_resize="bilinear_antialias", patch_dropout=0.25
    )
    config.data.augment = "random_resized_crop(scale=(0.3, 1.0), ratio=(0.4, 2.5))|flip"
    config.total_steps, config.grad_accum_steps = 4, 2
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("naflex")
    config = naflex_clip()
    config.hooks.samples = {"name": "samples", "count": 3}
    return workdir, experiment.train(config, workdir)


@pytest.mark.release
def test_contrastive_run_with_zero_shot_evaluation(run):
    workdir, metrics = run
    losses = metrics_of(workdir)
    assert list(losses) == [1, 2, 3, 4]
    assert np.isfinite([*losses.values()]).all()
    assert 0 <= metrics["zeroshot/digits/top1"] <= 1


@pytest.mark.release
def test_run_opens_as_a_model(run):
    model = vit_jax.create_model(weights=run[0])
    images = [model.preprocess(np.full(shape, 90, np.uint8)) for shape in ((8, 30), (9, 9))]
    embedded = np.asarray(model.encode_image(np.stack(images), normalize=True))
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)


def noise(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (8 + 3 * i, 20, 3), np.uint8) for i in range(count)]


def naflex_context():
    architecture = small_vit(num_classes=3, position_resize="bilinear_antialias")
    spec = ModelSpec(architecture=architecture, inputs=ImageInputs(resize="naflex"))
    return dataclasses.replace(context_of(architecture), spec=spec)


def test_mixup_needs_images_of_one_size():
    with pytest.raises(UserError, match="mixup and cutmix need images of one size"):
        build("classification", naflex_context(), mixup_alpha=0.2)


def test_export_needs_images_of_one_size():
    context = naflex_context()
    with pytest.raises(UserError, match=r"exported programs take images of one size"):
        programs(PretrainedModel(context.spec, context.model, {}))


@pytest.mark.release
def test_classification_in_microbatches():
    context = naflex_context()
    inputs = context.spec.inputs
    packed = np.stack([inputs.pack(inputs(image)) for image in noise(4)])
    batch = {"image": jnp.asarray(packed), "label": jnp.arange(4) % 3}

    @jax.jit
    def losses(batch):
        model = context.model.bind(context.model.init(jax.random.key(0)))
        cut = [
            dataclasses.replace(context, microbatches=Microbatches(steps, 1)) for steps in (1, 2)
        ]
        return [build("classification", x)(model, batch, jax.random.key(1))[0] for x in cut]

    np.testing.assert_allclose(*losses(batch), rtol=1e-5)


@pytest.mark.release
def test_plan_counts_patches():
    """A step of the NaFlex model costs as much as one of the fixed model, and its positions."""

    def flops(name):
        config = default_config(name)
        config.model.text.vocab_size = 1000
        config.batch_size, config.total_steps = 8, 1
        return traced_flops(trace_step(experiment.build(config, data=False)).jaxpr)

    assert 1.0 < flops("siglip2_b16_naflex") / flops("siglip2_b16_256") < 1.05
