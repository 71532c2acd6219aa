"""ViT and text tower against a NumPy float64 reference, and invariance to execution."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from vit_jax.errors import UserError
from vit_jax.models import partitioning
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.vit.model import ViTConfig

IMAGE = ViTConfig(
    image_size=16, patch_size=4, width=24, depth=3, num_heads=3, mlp_dim=40, num_classes=5
)
DROPPED = dataclasses.replace(IMAGE, drop_path=0.5)
TEXT = TextConfig(
    vocab_size=50, context_length=9, width=16, depth=2, num_heads=2, mlp_dim=32, causal=True
)
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def random_params(model: ModelDef, seed: int = 0):
    """Random values: zeros and ones would hide the parameters that they multiply."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(scale=0.3, size=x.shape), jnp.float32), model.shapes()
    )


def reference_norm(x, p, epsilon):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * p["scale"] + p["bias"]


def reference_transformer(x, p, config, causal):
    """Applies one block and one head at a time."""
    for i in range(config.depth):
        b = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
        y = reference_norm(x, b["norm1"], config.norm_epsilon)
        total = np.zeros_like(x) + b["attention"]["out"]["bias"]
        for h in range(config.num_heads):
            q, k, v = (
                y @ b["attention"]["qkv"]["kernel"][:, j, h] + b["attention"]["qkv"]["bias"][j, h]
                for j in range(3)
            )
            logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
            if causal:
                logits = np.where(np.tri(x.shape[1]), logits, -np.inf)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            total += weights @ v @ b["attention"]["out"]["kernel"][h]
        x = x + total
        y = reference_norm(x, b["norm2"], config.norm_epsilon)
        y = ACTIVATIONS[config.activation](y @ b["mlp"]["fc1"]["kernel"] + b["mlp"]["fc1"]["bias"])
        x = x + y @ b["mlp"]["fc2"]["kernel"] + b["mlp"]["fc2"]["bias"]
    return x


def reference_vit(images, p, config):
    n, size, patch = len(images), images.shape[1] // config.patch_size, config.patch_size
    x = images.reshape(n, size, patch, size, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, size * size, -1) @ p["patch_embed"]["kernel"].reshape(-1, config.width)
    if config.patch_bias:
        x = x + p["patch_embed"]["bias"]
    if config.class_token:
        x = np.concatenate([np.broadcast_to(p["class_token"], (n, 1, config.width)), x], 1)
    x = x + p["positions"]
    if config.pre_norm:
        x = reference_norm(x, p["pre_norm"], config.norm_epsilon)
    x = reference_transformer(x, p["transformer"], config, causal=False)
    x = reference_norm(x, p["norm"], config.norm_epsilon)
    x = x[:, 0] if config.pool == "class" else x.mean(1)
    return x @ p["head"]["kernel"] + p["head"]["bias"]


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def images(size=16, count=2):
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, size, size, 3)), jnp.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "mean", "class_token": False, "activation": "quick_gelu", "norm_epsilon": 1e-5},
        {"pre_norm": True, "patch_bias": False},
    ],
)
def test_vit_equals_reference(changes):
    config = ViTConfig(**{**vars(IMAGE), **changes})
    model = ModelDef(config)
    params = random_params(model)
    expected = reference_vit(np.asarray(images(), np.float64), as_float64(params), config)
    np.testing.assert_allclose(model.bind(params)(images()), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_text_tower_equals_reference(causal):
    config = CLIPConfig(image=IMAGE, text=TextConfig(**{**vars(TEXT), "causal": causal}))
    model = ModelDef(config)
    params = random_params(model)
    tokens = jnp.asarray([[5, 6, 49, 0, 0, 0, 0, 0, 0], [7, 8, 9, 10, 11, 12, 13, 14, 49]])
    p = as_float64(params["text"])
    x = p["token_embed"]["embedding"][np.asarray(tokens)] + p["positions"]
    x = reference_transformer(x, p["transformer"], config.text, causal)
    x = reference_norm(x, p["norm"], config.text.norm_epsilon)
    expected = x[[0, 1], [2, 8]] @ as_float64(params["text_projection"]["kernel"])
    found = model.bind(params).encode_text(tokens)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def loss_and_grads(model, params):
    def loss(params):
        return jnp.sum(jnp.sin(model.bind(params)(images(), rng=jax.random.key(3))))

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def expected_grads():
    """Loss and gradients of `DROPPED` with the default execution."""
    model = ModelDef(DROPPED)
    return loss_and_grads(model, random_params(model))


@pytest.mark.parametrize(
    "execution",
    [
        {"scan": False},
        {"remat": "mlp"},
        pytest.param({"remat": "dots"}, marks=pytest.mark.release),
        pytest.param({"remat": "full"}, marks=pytest.mark.release),
        pytest.param({"scan": False, "remat": "full"}, marks=pytest.mark.release),
    ],
)
def test_execution_changes_nothing(expected_grads, execution):
    """Loss and gradients agree for scan and every remat policy, with stochastic depth."""
    model = ModelDef(DROPPED, **execution)
    expected, found = expected_grads, loss_and_grads(model, random_params(model))
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale), found, expected
    )


def test_each_policy_saves_less_than_the_one_before():
    def saved(remat):
        model = ModelDef(IMAGE, remat=remat)
        params = random_params(model)
        _, backward = jax.vjp(lambda p: model.bind(p)(images()), params)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(backward))

    assert saved("none") > saved("mlp") > saved("dots") > saved("full")


def test_a_block_is_traced_once_regardless_of_depth():
    def size(depth, scan):
        model = ModelDef(ViTConfig(**{**vars(IMAGE), "depth": depth}), scan=scan)
        fn = lambda p: model.bind(p)(images())  # noqa: E731
        return len(str(jax.make_jaxpr(fn)(model.shapes())).splitlines())

    assert size(12, True) == size(2, True)
    assert size(12, False) > 3 * size(2, False)


@pytest.mark.release
@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=pytest.mark.release)])
def test_platforms_agree(causal):
    """The implementations of a TPU compute the results and gradients of those of a CPU."""
    config = ViTConfig(**{**vars(IMAGE), "qk_norm": not causal})
    text = TextConfig(**{**vars(TEXT), "causal": causal})
    model = ModelDef(CLIPConfig(image=config, text=text, embed_dim=8))
    params, tokens = random_params(model), jnp.asarray([[5, 6, 49, 0, 0, 0, 0, 0, 0]])

    def run(platform, attention="auto"):
        def loss(params):
            with partitioning.use(platform=platform, attention=attention, interpret=True):
                module = model.bind(params)
                embeddings = module.encode_image(images()), module.encode_text(tokens)
            return sum(jnp.sum(jnp.sin(x)) for x in embeddings)

        return jax.jit(jax.value_and_grad(loss))(params)

    expected = run("cpu")
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(expected))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5 * scale)
    for other in (run("tpu"), run("tpu", "einsum")):
        jax.tree.map(close, other, expected)


def test_features_are_those_of_the_forward_pass():
    model = ModelDef(IMAGE)
    module = model.bind(random_params(model))
    first, last = module.features(images(), layers=(0, -1))
    assert first.shape == last.shape == (2, 17, 24)
    pooled = module.norm(last[:, 0])
    np.testing.assert_allclose(pooled, module.encode_image(images()), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="layer 3 does not exist: this tower has 3 blocks"):
        module.features(images(), layers=(3,))


def test_patch_dropout_applies_in_training_only():
    """With all except one patch dropped, the mean of the patches is the feature of that patch."""
    changes = {"num_classes": 0, "class_token": False, "pool": "mean", "depth": 1}
    plain = ModelDef(ViTConfig(**{**vars(IMAGE), **changes}))
    dropping = ModelDef(ViTConfig(**{**vars(IMAGE), **changes, "patch_dropout": 0.99}))
    params = random_params(plain)
    module = dropping.bind(params)
    np.testing.assert_array_equal(
        module.encode_image(images()), plain.bind(params).encode_image(images())
    )
    found = module.encode_image(images(), rng=jax.random.key(0))
    each = [plain.bind(params).encode_patches(images(), jnp.full((2, 1), i)) for i in range(16)]
    distances = jnp.abs(jnp.stack(each)[:, :, 0] - found).max(-1)
    np.testing.assert_allclose(distances.min(0), 0, atol=1e-5)


def test_bfloat16_compute_keeps_float32_parameters_and_embeddings():
    config = CLIPConfig(image=ViTConfig(**{**vars(IMAGE), "num_classes": 0}), text=TEXT)
    exact, fast = ModelDef(config), ModelDef(config, dtype="bfloat16")
    params = jax.jit(fast.init)(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def embed(model):
        return jax.jit(lambda p: model.bind(p).encode_image(images(), normalize=True))(params)

    found = embed(fast)
    assert found.dtype == jnp.float32
    tower = fast.bind(params).image
    assert jax.eval_shape(tower.encode_image, images()).dtype == jnp.bfloat16
    expected = embed(exact)
    np.testing.assert_allclose(found, expected, atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)


def test_metadata_covers_every_parameter():
    """Axes name each dimension, only matrices decay, and the temperature is bounded."""
    model = ModelDef(CLIPConfig(image=IMAGE, text=TEXT))
    axes = model.metadata("axes")
    is_leaf = lambda x: isinstance(x, tuple)  # noqa: E731
    jax.tree.map(
        lambda a, x: len(a) == x.ndim or pytest.fail(f"{a} {x}"),
        axes,
        model.shapes(),
        is_leaf=is_leaf,
    )
    decay = model.metadata("decay")
    assert decay["image"]["transformer"]["blocks"]["mlp"]["fc1"] == {"kernel": True, "bias": False}
    assert decay["image"]["positions"] is decay["logit_scale"] is False
    assert model.metadata("bounds")["logit_scale"] == (0.0, np.log(100.0))
