"""ResNets against timm's and open_clip's activations, and their running statistics."""

import copy
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.helpers import assert_trees_equal
from vit_jax.errors import UserError
from vit_jax.models.clip_resnet.model import CLIPResNetConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.resnet.model import ResNetConfig
from vit_jax.models.vit.model import ViTConfig

DATA = pathlib.Path(__file__).parent.parent / "fixtures" / "weights"
DEPTHS = (3, 2, 1, 1)
CONFIGS = {
    "resnet": ResNetConfig(image_size=64, depths=DEPTHS, width=4, num_classes=10),
    "clip_resnet": CLIPResNetConfig(
        image_size=64, depths=DEPTHS, width=4, num_heads=4, embed_dim=12
    ),
}
PREFIXES = {"resnet": "", "clip_resnet": "visual."}
TRAIN = jax.random.key(0)  # nothing is drawn from it


def convolution(state, name):
    return {"kernel": state[f"{name}.weight"].transpose(2, 3, 1, 0)}


def norm(state, name):
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return {ours: state[f"{name}.{theirs}"] for theirs, ours in names.items()}


def bottleneck(state, name):
    block = {}
    for i in (1, 2, 3):
        block[f"conv{i}"] = convolution(state, f"{name}.conv{i}")
        block[f"norm{i}"] = norm(state, f"{name}.bn{i}")
    if f"{name}.downsample.0.weight" in state:
        block["shortcut_conv"] = convolution(state, f"{name}.downsample.0")
        block["shortcut_norm"] = norm(state, f"{name}.downsample.1")
    return block


def stages(state, prefix):
    tree = {}
    for i, depth in enumerate(DEPTHS):
        blocks = [bottleneck(state, f"{prefix}layer{i + 1}.{j}") for j in range(depth)]
        tree[f"stage{i}"] = {"first": blocks[0]}
        if depth > 1:
            tree[f"stage{i}"]["rest"] = jax.tree.map(lambda *x: np.stack(x), *blocks[1:])
    return tree


def linear(state, name):
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def resnet_params(state):
    return {
        "stem_conv": convolution(state, "conv1"),
        "stem_norm": norm(state, "bn1"),
        **stages(state, ""),
        "head": linear(state, "fc"),
    }


def clip_resnet_params(state):
    config, pool = CONFIGS["clip_resnet"], "visual.attnpool"
    width, heads = config.channels, config.num_heads
    tree = stages(state, "visual.")
    for i in (1, 2, 3):
        tree[f"stem_conv{i}"] = convolution(state, f"visual.conv{i}")
        tree[f"stem_norm{i}"] = norm(state, f"visual.bn{i}")
    tree["pool"] = {"positions": state[f"{pool}.positional_embedding"]}
    for theirs, ours in {"q": "query", "k": "key", "v": "value"}.items():
        layer = linear(state, f"{pool}.{theirs}_proj")
        tree["pool"][ours] = {
            "kernel": layer["kernel"].reshape(width, heads, -1),
            "bias": layer["bias"].reshape(heads, -1),
        }
    out = linear(state, f"{pool}.c_proj")
    tree["pool"]["out"] = {**out, "kernel": out["kernel"].reshape(heads, -1, config.embed_dim)}
    return tree


TO_PARAMS = {"resnet": resnet_params, "clip_resnet": clip_resnet_params}


@dataclasses.dataclass
class Case:
    """A tiny model with the weights, inputs and outputs of its reference."""

    family: str
    state: dict
    reference: dict

    def model(self, **execution):
        return ModelDef(CONFIGS[self.family], **execution)

    @functools.cached_property
    def params(self):
        return jax.tree.map(jnp.asarray, TO_PARAMS[self.family](self.state))

    @functools.cached_property
    def gradients(self):
        """Result of `train_gradients` with the default execution."""
        return train_gradients(self.model(), self.params, self.reference["images"])

    @property
    def updated_params(self):
        """Parameters whose running averages are those of the reference after one training step."""
        named = ((key.partition("updated."), value) for key, value in self.reference.items())
        updated = {name: value for (_, found, name), value in named if found}
        assert updated
        return TO_PARAMS[self.family]({**self.state, **updated})


# Programs that take seconds to compile: of the two architectures, which share their blocks, the
# default tests run the one with attention pooling.
costly = pytest.mark.parametrize(
    "case", [pytest.param("resnet", marks=pytest.mark.release), "clip_resnet"], indirect=True
)


@pytest.fixture(scope="module", params=list(CONFIGS))
def case(request):
    tensors = safetensors.numpy.load_file(DATA / f"{request.param}_tiny.safetensors")
    tensors = {key: tensor.astype(np.float32) for key, tensor in tensors.items()}
    prefix = "reference."
    state = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
    reference = {
        key.removeprefix(prefix): jnp.asarray(value)
        for key, value in tensors.items()
        if key.startswith(prefix)
    }
    return Case(request.param, state, reference)


def assert_close(found, expected, tolerance=1e-5):
    """Compares with a tolerance relative to the largest value."""
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def assert_trees_close(found, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance), found, expected)


def test_parameter_tree(case):
    shapes = case.model().shapes()
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(np.shape, case.params)


def evaluate(model, params, images):
    return jax.jit(lambda p, x: model.bind(p)(x))(params, images)


def train(model, params, images):
    """Outputs and running statistics of a forward pass in training."""

    def forward(params, images):
        module = model.bind(params)
        return module(images, rng=TRAIN), model.statistics(module)

    return jax.jit(forward)(params, images)


def train_gradients(model, params, images):
    """((loss, running statistics), gradients)."""

    def loss(params):
        module = model.bind(params)
        outputs = module(images, rng=TRAIN)
        return jnp.mean((outputs - 1.0) ** 2), model.statistics(module)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def test_equals_reference(case):
    model, images = case.model(), case.reference["images"]
    encode = jax.jit(lambda p, x: model.bind(p).encode_image(x))
    pooled = encode(case.params, images)
    assert_close(pooled, case.reference["pooled"])
    assert model.bind(case.params).embed_dim == pooled.shape[1]
    logits = case.reference.get("logits", case.reference["pooled"])
    assert_close(evaluate(model, case.params, images), logits)


def test_equals_reference_at_another_size(case):
    """At a size that is not square, with resized positions for CLIP."""
    model = case.model()

    @jax.jit
    def forward(params, images):
        module = model.bind(params)
        return module.features(images, (0, 1, 2, -1)), module.encode_image(images)

    stages, pooled = forward(case.params, case.reference["other_images"])
    for i, output in enumerate(stages):
        assert_close(output, case.reference[f"stage_{i}"])
    assert_close(pooled, case.reference["other_pooled"])


def test_training_updates_the_running_averages_as_torch_does(case):
    model, images = case.model(), case.reference["images"]

    @jax.jit
    def forward(params):
        module = model.bind(params)
        return module.encode_image(images, rng=TRAIN), model.statistics(module)

    pooled, statistics = forward(case.params)
    assert_close(pooled, case.reference["train_pooled"])
    assert_trees_close(model.with_statistics(case.params, statistics), case.updated_params)


def test_evaluation_leaves_the_running_averages_alone(case):
    """A function that jit compiles can use a bound module, which forbids updates."""
    model = case.model()
    module = model.bind(case.params)
    jax.eval_shape(module.encode_image, case.reference["images"])
    statistics = model.statistics(module)
    assert_trees_equal(model.with_statistics(case.params, statistics), case.params)


@costly
def test_frozen_norms_train_on_their_running_averages(case):
    """With all norms frozen, training equals evaluation; other stages than the frozen update."""
    model, images = case.model(), case.reference["images"]
    before = model.statistics(model.bind(case.params))
    frozen = model.with_frozen_statistics(jax.tree.map(lambda _: True, model.shapes()))
    found, statistics = train(frozen, case.params, images)
    assert_close(found, evaluate(model, case.params, images))
    assert_trees_close(statistics, before)

    first_stage = jax.tree_util.tree_map_with_path(
        lambda path, _: path[0].key == "stage0", model.shapes()
    )
    part = model.with_frozen_statistics(first_stage)
    _, statistics = train(part, case.params, images)
    same = jax.tree.map(lambda new, old: bool((new == old).all()), statistics, before)
    assert all(jax.tree.leaves(same.pop("stage0")))
    assert not any(jax.tree.leaves(same))


@costly
def test_gradients_reach_all_but_the_statistics(case):
    """All parameters have gradients, and only the forward pass changes the statistics."""
    model, params = case.model(), case.params
    (_, statistics), grads = copy.deepcopy(case.gradients)
    if case.family == "clip_resnet":
        # Softmax is invariant to a shift of all keys: the gradient is zero except for rounding.
        del grads["pool"]["key"]["bias"]
    trainable = jax.tree_util.tree_leaves_with_path(model.metadata("trainable", True))
    trainable = {jax.tree_util.keystr(path): value for path, value in trainable}
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert bool(np.any(grad)) is trainable[jax.tree_util.keystr(path)], path
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), model.with_statistics(params, statistics), params
    )
    assert moved == jax.tree.map(lambda value: not value, model.metadata("trainable", True))


@costly
@pytest.mark.parametrize(
    "execution",
    [
        {"scan": False},
        pytest.param({"remat": "full"}, marks=pytest.mark.release),
        pytest.param({"scan": False, "remat": "dots"}, marks=pytest.mark.release),
    ],
)
def test_execution_changes_nothing(case, execution):
    """Loss, gradients and statistics agree for scan and every remat policy."""
    images = case.reference["images"]
    expected = case.gradients
    found = train_gradients(case.model(**execution), case.params, images)
    assert_close(found[0][0], expected[0][0])
    assert_trees_close(found[0][1], expected[0][1])
    scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(expected[1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale),
        found[1],
        expected[1],
    )


@costly
def test_statistics_are_those_of_the_global_batch(case):
    """Eight devices with one image each compute the statistics of one device with all eight."""
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3))
    # Scaled, so that the statistics of an image differ from those of the batch.
    images = jnp.asarray(images * np.arange(1, 9).reshape(8, 1, 1, 1), jnp.float32)
    _, expected = train(case.model(), case.params, images)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(case.params, NamedSharding(mesh, PartitionSpec()))
    _, found = train(case.model(), everywhere, split)
    assert_trees_close(found, expected)


def test_a_block_is_traced_once_regardless_of_depth(case):
    def size(depth, scan):
        config = dataclasses.replace(CONFIGS[case.family], depths=(depth, 1, 1, 1))
        model = ModelDef(config, scan=scan)
        fn = lambda p, x: model.bind(p)(x, rng=TRAIN)  # noqa: E731
        images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
        return len(str(jax.make_jaxpr(fn)(model.shapes(), images)).splitlines())

    assert size(9, True) == size(3, True)
    assert size(9, False) > size(3, False)


@pytest.mark.slow
@costly
def test_initial_blocks_are_the_identity(case):
    """The last norm of every bottleneck starts at zero: the convolutions have no effect."""
    model, images = case.model(), case.reference["images"]
    params = jax.jit(model.init)(jax.random.key(0))
    expected = evaluate(model, params, images)
    for i in range(4):
        for block in params[f"stage{i}"].values():
            block["conv2"] = jax.tree.map(lambda x: x + 1, block["conv2"])
    np.testing.assert_array_equal(evaluate(model, params, images), expected)


def test_metadata_covers_every_parameter(case):
    model = case.model()
    is_leaf = lambda x: isinstance(x, tuple)  # noqa: E731
    axes = model.metadata("axes")
    jax.tree.map(
        lambda a, x: len(a) == len(set(a)) == x.ndim or pytest.fail(f"{a} {x}"),
        axes,
        model.shapes(),
        is_leaf=is_leaf,
    )
    stage = model.metadata("decay")["stage0"]
    assert stage["rest"]["conv1"] == {"kernel": True}
    assert not any(jax.tree.leaves(stage["rest"]["norm1"]))
    stage = model.metadata("trainable", True)["stage0"]
    assert stage["rest"]["norm1"] == {"scale": True, "bias": True, "mean": False, "var": False}
    assert axes["stage0"]["rest"]["norm1"]["mean"] == ("layers", "embed")


@costly
def test_bfloat16_compute_keeps_float32_parameters_and_statistics(case):
    images = case.reference["images"]
    fast = case.model(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(fast.shapes())} == {jnp.dtype("float32")}
    found, statistics = train(fast, case.params, images)
    assert {x.dtype for x in jax.tree.leaves(statistics)} == {jnp.dtype("float32")}
    expected, _ = train(case.model(), case.params, images)
    assert_close(found.astype(jnp.float32), expected, tolerance=0.1)
    encode = lambda p: fast.bind(p).encode_image(images)  # noqa: E731
    assert jax.eval_shape(encode, fast.shapes()).dtype == jnp.bfloat16


def test_a_model_without_batch_norms_has_no_statistics():
    config = ViTConfig(image_size=8, patch_size=4, width=8, depth=1, num_heads=1, mlp_dim=8)
    model = ModelDef(config)
    params = jax.jit(model.init)(jax.random.key(0))
    assert model.statistics(model.bind(params)) == {}
    assert model.with_statistics(params, {}) == params


def output_shape(model, shape, **kwargs):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    forward = lambda p, x: model.bind(p)(x, **kwargs)  # noqa: E731
    return jax.eval_shape(forward, model.shapes(), images).shape


def test_invalid_input(case):
    module = case.model().bind(case.params)
    with pytest.raises(UserError, match="layer 4 does not exist: this tower has 4 stages"):
        module.features(case.reference["images"], (4,))
    with pytest.raises(UserError, match="a ResNet has no MLP"):
        case.model(remat="mlp").shapes()
    with pytest.raises(UserError, match=r"depths=\(1, 2\): expected 4 positive numbers"):
        dataclasses.replace(CONFIGS[case.family], depths=(1, 2))


def test_one_value_per_channel_has_no_variance():
    model = ModelDef(CONFIGS["resnet"])
    assert output_shape(model, (1, 32, 32, 3)) == (1, 10)
    with pytest.raises(UserError, match="more than one value per channel"):
        output_shape(model, (1, 32, 32, 3), rng=TRAIN)
