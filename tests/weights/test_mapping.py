"""Transforms against their formulas, entries of every kind, resizing, and memory."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax.errors import UserError
from vit_jax.models.layers.positions import resize_positions
from vit_jax.models.layers.weights import ResizePositions
from vit_jax.models.swin.weights import ResizeBiasTable
from vit_jax.models.swin.windows import num_offsets, resize_bias_table
from vit_jax.weights import transforms as t
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors
from vit_jax.weights.entry import Entry
from vit_jax.weights.mapping import export, load

RNG = np.random.default_rng(0)
WIDTH, HEADS, HEAD_DIM = 6, 2, 3


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X, VECTOR = random(4, WIDTH), random(WIDTH)


def heads(x):
    """Splits features into heads as torch does."""
    return x.reshape(*x.shape[:-1], HEADS, HEAD_DIM)


@pytest.mark.parametrize(
    ("transform", "theirs", "ours"),
    [
        (t.IDENTITY, [VECTOR], [VECTOR]),
        (t.LINEAR, [X], [X.T]),
        (t.FLAT, [VECTOR], [heads(VECTOR)]),
        (t.LEADING_ONE, [X[None]], [X]),
        (t.LEADING_ONE, [VECTOR[:1]], [VECTOR[0]]),
        (t.NO_LEADING_ONE, [VECTOR], [VECTOR[None]]),
        (t.FLAX_QKV_BIAS, [heads(VECTOR), heads(VECTOR + 1), heads(VECTOR + 2)],
         [np.stack([heads(VECTOR + i) for i in range(3)])]),
    ],
)  # fmt: skip
def test_transform(transform, theirs, ours):
    check_both_ways(transform, theirs, ours)


def check_both_ways(transform, theirs, ours):
    loaded = transform.load(theirs, [np.shape(x) for x in ours])
    saved = transform.save(ours)
    for found, expected in ((loaded, ours), (saved, theirs)):
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_array_equal(x, y, strict=True)


def test_convolution_means_the_same():
    """A kernel (O, I, H, W) at one position is the sum over inputs, rows and columns."""
    kernel, patch = random(5, 3, 2, 4), random(2, 4, 3)
    (ours,) = t.CONV.load([kernel], [(2, 4, 3, 5)])
    expected = np.einsum("oihw,hwi->o", kernel, patch)
    np.testing.assert_allclose(np.einsum("hwi,hwio->o", patch, ours), expected, rtol=1e-5)
    np.testing.assert_array_equal(t.CONV.save([ours])[0], kernel)


def test_attention_projections_mean_the_same():
    """Fused, separate and split projections give the same queries, keys, values and outputs."""
    fused, bias, out = random(3 * WIDTH, WIDTH), random(3 * WIDTH), random(WIDTH, WIDTH)
    parts, biases = np.split(fused, 3), np.split(bias, 3)
    expected = np.stack([heads(X @ w.T + b) for w, b in zip(parts, biases, strict=True)], 1)
    kernel_shape, bias_shape = (WIDTH, 3, HEADS, HEAD_DIM), (3, HEADS, HEAD_DIM)
    for kernel_transform, kernels, bias_transform, vectors in (
        (t.LINEAR, [fused], t.FLAT, [bias]),
        (t.SEPARATE_QKV, parts, t.SEPARATE_QKV_BIAS, biases),
    ):
        (w,) = kernel_transform.load(kernels, [kernel_shape])
        (b,) = bias_transform.load(vectors, [bias_shape])
        np.testing.assert_allclose(np.einsum("nd,djhk->njhk", X, w) + b, expected, rtol=1e-5)
        check_both_ways(kernel_transform, kernels, [w])
        check_both_ways(bias_transform, vectors, [b])
    (w,) = t.ATTENTION_OUT.load([out], [(HEADS, HEAD_DIM, WIDTH)])
    np.testing.assert_allclose(np.einsum("nhk,hkd->nd", heads(X), w), X @ out.T, rtol=1e-5)
    check_both_ways(t.ATTENTION_OUT, [out], [w])


def test_one_fused_tensor_of_theirs_is_several_of_ours():
    """The query is separate from keys and values, as in attention pooling."""
    fused = random(3 * WIDTH, WIDTH)
    shapes = [(WIDTH, HEADS, HEAD_DIM), (WIDTH, 2, HEADS, HEAD_DIM)]
    query, key_value = t.concatenate(t.LINEAR).load([fused], shapes)
    np.testing.assert_array_equal(query, fused[:WIDTH].T.reshape(shapes[0]))
    np.testing.assert_array_equal(key_value, fused[WIDTH:].T.reshape(shapes[1]))
    check_both_ways(t.concatenate(t.LINEAR), [fused], [query, key_value])


# Every kind of entry: plain, stacked over all layers, stacked over every other layer, several
# tensors, several parameters, already stacked.
ENTRIES = [
    Entry("head/kernel", "head.weight", t.LINEAR),
    Entry("blocks/fc/kernel", "blocks.{i}.fc.weight", t.LINEAR, range(2, 5)),
    Entry("odd/scale", "blocks.{i}.scale", layers=(1, 3)),
    Entry("blocks/qkv", ("b.{i}.q", "b.{i}.k", "b.{i}.v"), t.stack(1, t.LINEAR), range(3)),
    Entry(("pool/query", "pool/rest"), "pool.in", t.concatenate(t.LINEAR)),
    Entry("scanned", "scanned"),
    Entry("positions", "pos", t.LEADING_ONE, resize=ResizePositions((2, 3), num_prefix=1)),
]
SHAPES = {
    "head/kernel": (6, 10),
    "blocks/fc/kernel": (3, 6, 4),
    "odd/scale": (2, 6),
    "blocks/qkv": (3, 6, 3, 2, 3),
    "pool/query": (6, 2, 3),
    "pool/rest": (6, 2, 2, 3),
    "scanned": (3, 5),
    "positions": (7, 6),
}
MODEL = traverse_util.unflatten_dict(
    {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()}, sep="/"
)
PARAMS = jax.tree.map(lambda x: jnp.asarray(random(*x.shape)), MODEL)


@pytest.fixture
def exported():
    return export(ENTRIES, PARAMS)


def test_export(exported):
    assert {key: value.shape for key, value in exported.items()} == {
        "head.weight": (10, 6),
        **{f"blocks.{i}.fc.weight": (4, 6) for i in (2, 3, 4)},
        **{f"blocks.{i}.scale": (6,) for i in (1, 3)},
        **{f"b.{i}.{part}": (6, 6) for i in range(3) for part in "qkv"},
        "pool.in": (18, 6),
        "scanned": (3, 5),
        "pos": (1, 7, 6),
    }
    assert all(value.flags.c_contiguous for value in exported.values())
    kernel = PARAMS["blocks"]["fc"]["kernel"]
    np.testing.assert_array_equal(exported["blocks.3.fc.weight"], kernel[1].T)
    np.testing.assert_array_equal(exported["blocks.3.scale"], PARAMS["odd"]["scale"][1])


def test_import_is_the_inverse(exported, tmp_path):
    write_tensors(tmp_path / "x", exported)
    loaded = load(ENTRIES, open_weights(tmp_path / "x"), MODEL)
    assert jax.tree.structure(loaded) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, loaded, PARAMS)


def test_positions_of_a_square_grid_fit_a_grid_of_any_shape(exported, tmp_path):
    exported["pos"] = random(1, 1 + 4 * 4, 6)
    write_tensors(tmp_path / "x", exported)
    found = load(ENTRIES, open_weights(tmp_path / "x"), MODEL)["positions"]
    assert found.shape == (7, 6)
    np.testing.assert_array_equal(found[0], exported["pos"][0, 0])
    for rows in (1 + 5, 1, 0):  # no square, no patch, no prefix
        exported["pos"] = random(1, rows, 6)
        write_tensors(tmp_path / "x", exported)
        with pytest.raises(UserError, match=rf"pos: expected \(1, 7, 6\), found \(1, {rows}, 6\)"):
            load(ENTRIES, open_weights(tmp_path / "x"), MODEL)


@pytest.mark.parametrize("grid", [(3, 2), (1, 6), (2, 4)])
def test_positions_of_a_known_grid(grid):
    """Resized from the grid of the file's model, even if the number of patches is the same."""
    resize = ResizePositions((2, 3), num_prefix=1).resized_from(ResizePositions(grid, 1))
    table = random(1 + grid[0] * grid[1], 6)
    assert resize.accepts(table.shape, (7, 6))
    expected = resize_positions(jnp.asarray(table), grid, (2, 3), 1)
    np.testing.assert_array_equal(resize(table, (7, 6)), expected)


def test_positions_that_fit_neither_known_grid():
    """The table belongs to the model, or else to a square grid."""
    resize = ResizePositions((2, 3)).resized_from(ResizePositions((3, 4)))
    table = random(6, 5)
    np.testing.assert_array_equal(resize(table, (6, 5)), table)
    table = random(16, 5)
    expected = resize_positions(jnp.asarray(table), (4, 4), (2, 3), 0)
    np.testing.assert_array_equal(resize(table, (6, 5)), expected)
    assert not resize.accepts((15, 5), (6, 5))


def test_bias_tables_of_a_known_window():
    """Of a window of 2 x 4, to one of 3 x 3 and to one of 4 x 2."""
    table = random(3 * 7, 2)
    for window in ((3, 3), (4, 2)):
        resize = ResizeBiasTable(window, "bicubic").resized_from(ResizeBiasTable((2, 4), "bicubic"))
        shape = (num_offsets(window), 2)
        assert resize.accepts(table.shape, shape)
        expected = resize_bias_table(jnp.asarray(table), (2, 4), window, "bicubic")
        np.testing.assert_array_equal(resize(table, shape), expected)


def test_nothing_is_read_before_all_fits(exported, tmp_path, monkeypatch):
    exported["scanned"] = exported["scanned"].T.copy()
    write_tensors(tmp_path / "x", exported)
    file = open_weights(tmp_path / "x")
    monkeypatch.setattr(file, "read", lambda key: pytest.fail(f"{key} was read"))
    with pytest.raises(UserError, match=r"scanned: expected \(3, 5\), found \(5, 3\)"):
        load(ENTRIES, file, MODEL)


def test_entries_that_do_not_cover_the_model(exported, tmp_path):
    write_tensors(tmp_path / "x", exported)
    message = r"without a name in the format: positions \(7, 6\); .*lacks: none"
    with pytest.raises(UserError, match=message):
        load(ENTRIES[:-1], open_weights(tmp_path / "x"), MODEL)


def test_ignored_names_are_patterns(exported, tmp_path):
    exported |= {"bn.1.num_batches_tracked": np.asarray(1), "bn.1.odd": np.zeros(2)}
    write_tensors(tmp_path / "x", exported)
    with pytest.raises(UserError) as caught:
        load(ENTRIES, open_weights(tmp_path / "x"), MODEL, ignored=("*.num_batches_tracked",))
    assert str(caught.value).splitlines()[1:] == ["  unexpected: bn.1.odd (2,)"]


# Peak resident memory of a new process during loading. VmHWM is its maximum in kB.
PEAK = """
import pathlib, sys
import jax
import numpy as np
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained.weight_files import load_weights, save_weights

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))

image = ViTConfig(image_size=32, width=1024, depth=4, num_heads=16, mlp_dim=4096,
                  pre_norm=True, patch_bias=False)
text = TextConfig(vocab_size=64, width=64, depth=1, num_heads=1, mlp_dim=64)
model = ModelDef(CLIPConfig(image=image, text=text))
path = pathlib.Path(sys.argv[2])
if sys.argv[1] == "write":
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), model.shapes())
    save_weights(params, model, path, "openai_clip")
else:
    jax.block_until_ready(jax.device_put(jax.numpy.ones(8)))
    before = status("VmRSS")
    params = load_weights(path, model)
    print((status("VmHWM") - before) / path.stat().st_size, path.stat().st_size)
"""


@pytest.mark.release
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_below_1_3_of_the_file(tmp_path):
    """The memory of the parameters, 200 MB, is included."""
    path = tmp_path / "large.safetensors"
    try:
        for action in ("write", "read"):
            command = [sys.executable, "-c", PEAK, action, str(path)]
            done = subprocess.run(command, text=True, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
    finally:
        path.unlink(missing_ok=True)
    ratio, size = map(float, done.stdout.split())
    assert size > 200e6
    assert 1 < ratio < 1.3
