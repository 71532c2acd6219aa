"""Attention: every implementation and all gradients against float64 NumPy, and the choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax as scipy_softmax

from vit_jax.errors import UserError
from vit_jax.models import partitioning
from vit_jax.models.definition import ModelDef
from vit_jax.models.ops.attention import (
    ATTENTION,
    attention,
    relative_attention,
    self_attention,
)
from vit_jax.models.ops.attention.dot_product import choose
from vit_jax.models.ops.attention.plain import MASKED, softmax
from vit_jax.models.ops.attention.projected import SELF_ATTENTION
from vit_jax.models.ops.attention.relative import RELATIVE_ATTENTION
from vit_jax.models.ops.attention.whole_sequence import Options, whole_sequence_attention
from vit_jax.models.vit.model import ViTConfig
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.sharding import ActivationPlacement

KERNELS = ("pallas", "splash")
ON_CPU = [name for name in ATTENTION if name != "cudnn"]
WITH_MASKS = [name for name in ON_CPU if name != "splash"]


def random(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def reference(query, key, value, dout, causal=False, mask=None, bias=None):
    """Outputs and gradients of queries, keys, values and the bias, in float64."""
    q, k, v, dout = (np.asarray(x, np.float64) for x in (query, key, value, dout))
    scores = np.einsum("bnhk,bmhk->bhnm", q, k) / np.sqrt(q.shape[-1])
    if bias is not None:
        scores += np.tile(np.asarray(bias, np.float64), (len(q) // len(bias), 1, 1, 1))
    if mask is not None:
        scores = np.where(np.tile(mask, (len(q) // len(mask), 1, 1, 1)), scores, MASKED)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:]), scores, MASKED)
    p = scipy_softmax(scores, axis=-1)
    dp = np.einsum("bnhk,bmhk->bhnm", dout, v)
    ds = p * (dp - np.sum(p * dp, axis=-1, keepdims=True))
    result = {
        "out": np.einsum("bhnm,bmhk->bnhk", p, v),
        "query": np.einsum("bhnm,bmhk->bnhk", ds, k) / np.sqrt(q.shape[-1]),
        "key": np.einsum("bhnm,bnhk->bmhk", ds, q) / np.sqrt(q.shape[-1]),
        "value": np.einsum("bhnm,bnhk->bmhk", p, dout),
    }
    if bias is not None:
        ds = ds.reshape(-1, len(bias), *ds.shape[1:]).sum(axis=0)
        shared = tuple(i for i in range(1, 4) if bias.shape[i] == 1)
        result["bias"] = ds.sum(axis=shared, keepdims=True)
    return result


def compute(implementation, query, key, value, dout, causal=False, mask=None, bias=None):
    def function(query, key, value, bias):
        return attention(
            query, key, value, causal=causal, mask=mask, bias=bias, implementation=implementation
        )

    out, gradients = jax.jit(
        lambda *args: (lambda y, vjp: (y, vjp(dout)))(*jax.vjp(function, *args))
    )(query, key, value, bias)
    names = ("query", "key", "value", "bias")
    found = {name: x for name, x in zip(names, gradients, strict=True) if x is not None}
    return {"out": out, **found}


def check(found, expected, tolerance):
    """Largest difference of each result, relative to its largest value or to 0.1."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = np.max(np.abs(np.asarray(found[name], np.float64) - value))
        assert error < tolerance * max(np.max(np.abs(value)), 0.1), (name, error)


def operands(batch, queries, keys, heads, head_dim, dtype=jnp.float32):
    shapes = ((queries, 0), (keys, 1), (keys, 2), (queries, 3))
    return [random(batch, n, heads, head_dim, seed=seed, dtype=dtype) for n, seed in shapes]


@pytest.mark.parametrize("implementation", ON_CPU)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 7), (1, 7)])
def test_results_and_gradients(implementation, causal, queries, keys):
    args = operands(2, queries, keys, 3, 4)
    check(compute(implementation, *args, causal), reference(*args, causal), 1e-5)


@pytest.mark.parametrize("implementation", WITH_MASKS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "bias_shape", [None, (1, 2, 5, 6), (2, 2, 5, 6), (4, 1, 5, 6), (2, 1, 1, 6)]
)
def test_masks_and_biases(implementation, masked, bias_shape):
    """Masks of padded keys; biases that examples or heads share, or that repeat, as of windows."""
    args = operands(4, 5, 6, 2, 4)
    keys = np.arange(6) < np.asarray([6, 4, 1, 5])[:, None]
    mask = keys[:, None, None] if masked else None
    bias = None if bias_shape is None else random(*bias_shape, seed=4)
    found = compute(
        implementation, *args, mask=None if mask is None else jnp.asarray(mask), bias=bias
    )
    check(found, reference(*args, mask=mask, bias=bias), 1e-5)


@pytest.mark.parametrize("implementation", WITH_MASKS)
def test_a_query_without_keys_averages_the_values(implementation):
    q, k, v, _ = operands(1, 2, 3, 1, 4)
    mask = jnp.asarray([[True, True, False], [False, False, False]])[None, None]
    found = attention(q, k, v, mask=mask, implementation=implementation)
    np.testing.assert_allclose(found[0, 1], jnp.mean(v[0], axis=0), rtol=1e-5)


# Interpreted kernels take seconds to compile. The tier before an issue closes has all of these.
ALL = pytest.mark.release


def in_release(*values):
    return [pytest.param(value, marks=ALL) for value in values]


@pytest.mark.parametrize("dtype", [jnp.float32, *in_release(jnp.bfloat16)])
@pytest.mark.parametrize(
    "length", [1, 50, 77, 197, *in_release(16, 49, 64, 196, 256, 577, 729, 1025)]
)
def test_lengths_of_the_whole_sequence_kernel(length, dtype):
    """Lengths that fill no tile. bfloat16 rounds results and probabilities: 2^-8 of the largest."""
    args = operands(2, length, length, 2, 64, dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.02
    causal = length in (64, 77)
    check(compute("pallas", *args, causal), reference(*args, causal), tolerance)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *in_release(jnp.float32)])
@pytest.mark.parametrize(
    ("heads", "head_dim"),
    [
        (3, 32),
        (8, 80),
        *(pytest.param(*x, marks=ALL) for x in [(4, 32), (16, 72), (2, 88), (4, 96), (2, 104)]),
        (1, 128),
    ],
)
def test_head_widths_of_the_whole_sequence_kernel(heads, head_dim, dtype):
    """Heads that lie across the borders of tiles."""
    args = operands(2, 9, 9, heads, head_dim, dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.02
    check(compute("pallas", *args), reference(*args), tolerance)


@pytest.mark.parametrize("length", [130, *in_release(1025, 3601, 4096)])
@pytest.mark.parametrize(("head_dim", "causal"), [(64, False), (72, True)])
def test_long_sequences(length, head_dim, causal):
    args = operands(1, length, length, 1, head_dim)
    check(compute("splash", *args, causal), reference(*args, causal), 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["cudnn", "einsum", "xla"])
@pytest.mark.parametrize(
    ("length", "head_dim", "causal"),
    [(49, 32, False), (77, 64, True), (197, 64, False), (257, 80, False), (577, 64, False)],
)
def test_on_gpus(implementation, length, head_dim, causal):
    """bfloat16, as in training; `choose` and docs/performance.md say which is used when."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU: JAX_PLATFORMS=cuda pytest -m gpu")
    args = operands(4, length, length, 4, head_dim, jnp.bfloat16)
    check(compute(implementation, *args, causal), reference(*args, causal), 0.02)


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize(
    "mesh",
    [{"data": 2, "fsdp": 2, "tensor": 2}, *in_release({"data": 2}, {"fsdp": 2, "tensor": 2})],
)
def test_kernels_on_several_devices(implementation, mesh):
    """Each device computes its examples and heads; biases are per window or shared by all."""
    args = operands(8, 6, 6, 4, 32)
    biases = (
        [None] if implementation == "splash" else [None, random(1, 4, 6, 6), random(2, 4, 6, 6)]
    )
    devices = int(np.prod(list(mesh.values())))
    placement = ActivationPlacement(make_mesh(**mesh, devices=jax.devices()[:devices]))
    for bias in biases:
        with partitioning.use(placement):
            found = compute(implementation, *args, bias=bias)
        check(found, reference(*args, bias=bias), 1e-5)


def test_heads_that_devices_do_not_divide():
    args = operands(2, 6, 6, 3, 32)
    with partitioning.use(ActivationPlacement(make_mesh(tensor=2, devices=jax.devices()[:2]))):
        check(compute("pallas", *args), reference(*args), 1e-5)


def test_biases_of_the_projections_are_added_in_the_kernel():
    q, k, v, dout = operands(2, 5, 5, 2, 64)
    offset = random(3, 128, seed=5)

    def function(q, k, v, offset):
        packed = (x.reshape(2, 5, 128) for x in (q, k, v))
        options = Options(head_dim=64, interpret=True)
        out = whole_sequence_attention(*packed, options, projection_bias=offset)
        return out.reshape(q.shape)

    out, vjp = jax.vjp(function, q, k, v, offset)
    shifted = [x + b.reshape(2, 64) for x, b in zip((q, k, v), offset, strict=True)]
    expected = reference(*shifted, dout)
    *gradients, doffset = vjp(dout)
    names = ("query", "key", "value")
    check({"out": out, **dict(zip(names, gradients, strict=True))}, expected, 1e-5)
    sums = np.stack([expected[name].sum(axis=(0, 1)).reshape(-1) for name in names])
    np.testing.assert_allclose(doffset, sums, atol=1e-5)


BATCH, LENGTH, HEADS, HEAD_DIM = 2, 5, 3, 4
WIDTH = HEADS * HEAD_DIM


def projections():
    qkv = random(WIDTH, 3, HEADS, HEAD_DIM, seed=4) / 3, random(3, HEADS, HEAD_DIM, seed=5)
    out = random(HEADS, HEAD_DIM, WIDTH, seed=6) / 3, random(WIDTH, seed=7)
    return qkv, out


def expected_self_attention(x, qkv, out, causal, normalized):
    x, *weights = (np.asarray(a, np.float64) for a in (x, *qkv, *out))
    flat = x.reshape(-1, WIDTH) @ weights[0].reshape(WIDTH, -1) + weights[1].reshape(-1)
    q, k, v = np.moveaxis(flat.reshape(BATCH, LENGTH, 3, HEADS, HEAD_DIM), 2, 0)
    if normalized:
        q, k = np.tanh(q), np.sin(k)
    attended = reference(q, k, v, v, causal)["out"]
    return attended.reshape(BATCH, LENGTH, WIDTH) @ weights[2].reshape(WIDTH, -1) + weights[3]


@pytest.mark.parametrize("implementation", SELF_ATTENTION)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_self_attention(implementation, causal, normalized):
    x, (qkv, out) = random(BATCH, LENGTH, WIDTH), projections()
    norms = (jnp.tanh, jnp.sin) if normalized else None
    found = self_attention(
        x, qkv, out, causal=causal, transform=norms, implementation=implementation
    )
    expected = expected_self_attention(x, qkv, out, causal, normalized)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("implementation", "kernel"),
    [
        *((name, "reference") for name in RELATIVE_ATTENTION),
        pytest.param("features", "splash", marks=pytest.mark.release),
    ],
)
def test_relative_attention(implementation, kernel):
    """Biases for the rows and the columns of a map of 3 x 5, as one bias; gradients too."""
    rows, columns = 3, 5
    shape = (2, rows * columns, 3, 8)
    query, key, value, dout = (random(*shape, seed=i) for i in range(4))
    by_row, by_column = random(*shape[:3], rows, seed=4), random(*shape[:3], columns, seed=5)
    index = np.arange(rows * columns)
    bias = by_row[..., index // columns] + by_column[..., index % columns]
    expected = reference(query, key, value, dout, bias=jnp.swapaxes(bias, 1, 2))

    def run(*arguments):
        with partitioning.use(None, attention=kernel, interpret=True):
            out = relative_attention(*arguments, implementation=implementation)
        return jnp.sum(out * dout), out

    arguments = (query, key, value, by_row, by_column)
    gradients, out = jax.jit(jax.grad(run, argnums=range(5), has_aux=True))(*arguments)
    found = dict(zip(("query", "key", "value"), gradients, strict=False)) | {"out": out}
    bias_gradient = np.swapaxes(expected.pop("bias"), 1, 2)
    check(found, expected, 1e-5)
    grid = bias_gradient.reshape(*shape[:3], rows, columns)
    np.testing.assert_allclose(gradients[3], grid.sum(axis=-1), atol=1e-5)
    np.testing.assert_allclose(gradients[4], grid.sum(axis=-2), atol=1e-5)


def test_softmax_in_bfloat16_is_as_exact_as_its_scores():
    """Rounding a probability is an error of 2^-9; a score of 8 is itself off by 2^-6."""
    scores = jnp.asarray(np.random.default_rng(0).normal(0, 3, (64, 196)), jnp.bfloat16)
    expected = scipy_softmax(np.asarray(scores, np.float64), axis=-1)
    found = np.asarray(softmax(scores), np.float64)
    np.testing.assert_allclose(found, expected, rtol=2**-5, atol=2**-9)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=2**-9)


@pytest.mark.parametrize(
    ("platform", "kind", "shape", "keys", "masked", "expected"),
    [
        ("cpu", "cpu", (2, 196, 12, 64), 196, False, "xla"),
        ("gpu", "NVIDIA H100", (2, 196, 12, 64), 196, False, "einsum"),
        ("tpu", "TPU v5 lite", (2, 196, 12, 64), 196, False, "pallas"),
        ("tpu", "TPU v5 lite", (2, 49, 3, 32), 49, True, "pallas"),
        ("tpu", "TPU v5 lite", (2, 1, 12, 64), 196, False, "xla"),  # attention pooling
        ("tpu", "TPU v5 lite", (2, 4096, 16, 64), 4096, False, "splash"),
        ("tpu", "TPU v5 lite", (2, 4096, 16, 64), 4096, True, "xla"),
        ("tpu", "TPU v4", (2, 196, 12, 64), 196, False, "pallas"),
        ("tpu", "TPU v4", (2, 1025, 16, 64), 1025, False, "splash"),
    ],
)
def test_choice(platform, kind, shape, keys, masked, expected):
    with partitioning.use(platform=platform, device_kind=kind):
        assert choose(shape, keys, jnp.bfloat16, masked=masked) == expected


def test_projections_have_the_layout_of_the_kernel_on_tpus():
    """On a CPU the projection into queries, keys and values is one matmul of (tokens, D)."""
    qkv, out = projections()

    def program(length, **devices):
        def forward(x):
            with partitioning.use(**devices):
                return self_attention(x, qkv, out)

        return str(jax.make_jaxpr(forward)(random(BATCH, length, WIDTH)))

    fused = f"f32[{BATCH * 8},3,{HEADS},{HEAD_DIM}]"
    assert fused in program(8, platform="cpu")
    assert "pallas_call" not in program(8, platform="cpu")
    for platform, kernel in [("gpu", False), ("tpu", True)]:
        text = program(8, platform=platform, device_kind="TPU v5 lite")
        assert fused not in text
        assert ("pallas_call" in text) is kernel


def test_the_config_chooses():
    q = random(1, 8, 1, 4)
    with partitioning.use(attention="pallas"):
        program = str(jax.make_jaxpr(functools.partial(attention, q))(q, q))
    assert "pallas_call" in program


def test_wrong_implementations():
    q = random(1, 2, 1, 4)
    with pytest.raises(UserError, match="implementation of attention 'xal'; did you mean 'xla'"):
        attention(q, q, q, implementation="xal")
    with pytest.raises(UserError, match="attention=splash supports no mask or bias"):
        attention(q, q, q, bias=random(1, 1, 2, 2), implementation="splash")
    with pytest.raises(UserError, match="attention=cudnn needs a GPU and"):
        attention(q, q, q, implementation="cudnn")
    with pytest.raises(UserError, match=r"config.compute.attention 'palas'; did you mean 'pallas'"):
        ModelDef(ViTConfig(), attention="palas")
