"""The kernels compiled ahead of time for every generation of TPU (pytest -m tpu_compile)."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from vit_jax.models import partitioning
from vit_jax.models.ops.attention import attention, relative_attention
from vit_jax.models.ops.attention.dot_product import choose
from vit_jax.models.ops.layer_norm import normalize_branch

pytestmark = [pytest.mark.release, pytest.mark.tpu_compile]

TOPOLOGIES = ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"]
# (batch, tokens, heads, features of a head), causal, examples of a bias per position or None.
SHAPES = {
    "SigLIP B/16, image": ((4, 196, 12, 64), False, None),
    "ViT-B/16": ((4, 197, 12, 64), False, None),
    "CLIP, text": ((4, 77, 8, 64), True, None),
    "ViT-L/16, 384 px": ((2, 577, 16, 64), False, None),
    "So400m/14, 224 px": ((2, 256, 16, 72), False, None),
    "So400m/14, 384 px": ((2, 729, 16, 72), False, None),
    "ViT-H/14": ((2, 257, 16, 80), False, None),
    "ViT-g/14": ((2, 257, 16, 88), False, None),
    "ViT-bigG/14": ((2, 257, 16, 104), False, None),
    "MAE-B, visible": ((4, 50, 12, 64), False, None),
    "Swin-T, first stage": ((128, 49, 3, 32), False, 64),
    "Swin-T, last stage": ((8, 49, 24, 32), False, 1),
    "ViT-L/14, 336 px in float32": ((1, 1025, 16, 64), False, None),
    "SAM, global": ((1, 4096, 12, 64), False, None),
}


@pytest.fixture(scope="module")
def device_of(libtpu):
    from vit_jax.planning.topologies import find_slice

    return lambda name: find_slice(name).devices[0]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", SHAPES)
def test_attention_and_its_gradient_compile(device_of, topology, name):
    shape, causal, examples = SHAPES[name]
    device = device_of(topology)
    dtype = jnp.float32 if "float32" in name else jnp.bfloat16
    bias_shape = None if examples is None else (examples, shape[2], shape[1], shape[1])

    def loss(q, k, v, bias):
        with partitioning.use(platform="tpu", device_kind=device.device_kind):
            expected = ("pallas", "splash")
            assert choose(shape, shape[1], dtype, masked=bias is not None) in expected
            out = attention(q, k, v, causal=causal, bias=bias)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    bias = None if bias_shape is None else array(bias_shape, jnp.float32)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3) if examples else (0, 1, 2)))
    text = gradient.lower(*[array(shape, dtype)] * 3, bias).compile().as_text()
    assert text.count("tpu_custom_call") >= 1


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_relative_attention_and_its_gradient_compile(device_of, topology):
    """SAM ViT-H, the whole map, of which no array of 4096 x 4096 is in memory."""
    device, side = device_of(topology), 64
    shape = (1, side**2, 16, 80)

    def loss(*arguments):
        with partitioning.use(platform="tpu", device_kind=device.device_kind):
            out = relative_attention(*arguments)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    def array(width, dtype):
        sharding = SingleDeviceSharding(device)
        return jax.ShapeDtypeStruct((*shape[:3], width), dtype, sharding=sharding)

    gradient = jax.jit(jax.grad(loss, argnums=range(5)))
    operands = [array(80, jnp.bfloat16)] * 3 + [array(side, jnp.float32)] * 2
    text = gradient.lower(*operands).compile().as_text()
    assert text.count("tpu_custom_call") >= 1
    assert f"{side**2},{side**2}" not in text


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", [(8, 196, 768), (4, 577, 1024), (16, 77, 512), (2, 729, 1152)])
def test_layer_norm_and_its_gradient_compile(device_of, topology, shape):
    device = device_of(topology)

    def loss(x, scale, bias):
        with partitioning.use(platform="tpu", device_kind=device.device_kind):
            y, x = normalize_branch(x, scale, bias, 1e-6)
        return jnp.sum((y * x).astype(jnp.float32))

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    vector = array(shape[-1:], jnp.float32)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    assert "tpu_custom_call" in gradient.lower(
        array(shape, jnp.bfloat16), vector, vector
    ).compile().as_text()  # fmt: skip
