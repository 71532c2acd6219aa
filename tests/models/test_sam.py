"""SAM: the authors' names, images of other sizes, prompts, gradients, errors.

The activations of transformers are compared in tests/weights/test_transformers.py.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.weights.transformers_models import SAM
from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef
from vit_jax.models.sam.prompts import PADDING, PromptEncoder, join_prompts
from vit_jax.models.sam.weights import OfficialSam
from vit_jax.pretrained.weight_files import load_weights, save_weights
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

MODEL = ModelDef(SAM)
AUTHORS = ModelDef(dataclasses.replace(SAM, decoder_epsilon=1e-5))
POINTS, LABELS = np.zeros((1, 2, 1, 2), np.float32), np.ones((1, 2, 1), np.int32)


def random_params(model=MODEL):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), model.shapes())


def shapes_of(size, *prompts, **options):
    """Shapes of the results, without computing anything."""
    images = jnp.zeros((len(prompts[0]), *size, 3))
    apply = lambda params, *arrays: MODEL.bind(params)(*arrays, **options)  # noqa: E731
    return jax.eval_shape(apply, MODEL.shapes(), images, *map(jnp.asarray, prompts))


def authors_names():
    """State dict of the authors' `Sam`: names from `build_sam.py` and the modules that it uses."""
    weight = ("weight",)
    both = ("weight", "bias")

    def attention(name):
        return {f"{name}.{part}_proj": both for part in "qkv"} | {f"{name}.out_proj": both}

    image, prompt, mask = "image_encoder.", "prompt_encoder.", "mask_decoder."
    two_way = f"{mask}transformer."
    found = {
        f"{image}patch_embed.proj": both,
        f"{image}neck.0": weight, f"{image}neck.1": both,
        f"{image}neck.2": weight, f"{image}neck.3": both,
        f"{prompt}not_a_point_embed": weight, f"{prompt}no_mask_embed": weight,
        f"{mask}iou_token": weight, f"{mask}mask_tokens": weight,
        **attention(f"{two_way}final_attn_token_to_image"),
        f"{two_way}norm_final_attn": both,
    }  # fmt: skip
    for i in range(SAM.image.depth):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2"):
            found[f"{image}blocks.{i}.{part}"] = both
        found[f"{image}blocks.{i}.attn"] = ("rel_pos_h", "rel_pos_w")
    found |= {f"{prompt}point_embeddings.{i}": weight for i in range(4)}
    found |= {f"{prompt}mask_downscaling.{i}": both for i in (0, 1, 3, 4, 6)}
    for i in range(SAM.depth):
        block = f"{two_way}layers.{i}."
        for part in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            found |= attention(block + part)
        for part in ("norm1", "norm2", "norm3", "norm4", "mlp.lin1", "mlp.lin2"):
            found[block + part] = both
    found |= {f"{mask}output_upscaling.{i}": both for i in (0, 1, 3)}
    for i, layer in itertools.product(range(SAM.num_masks + 1), range(3)):
        found[f"{mask}output_hypernetworks_mlps.{i}.layers.{layer}"] = both
    found |= {f"{mask}iou_prediction_head.layers.{i}": both for i in range(3)}
    names = {f"{key}.{suffix}" for key, suffixes in found.items() for suffix in suffixes}
    frequencies = f"{prompt}pe_layer.positional_encoding_gaussian_matrix"
    return names | {f"{image}pos_embed", frequencies}


def test_names_of_the_authors(tmp_path):
    params = random_params()
    save_weights(params, AUTHORS, tmp_path / "out.safetensors", "segment_anything")
    file = open_weights(tmp_path / "out.safetensors")
    assert set(file) == authors_names()
    jax.tree.map(np.testing.assert_array_equal, load_weights(file.path, AUTHORS), params)
    # The second layer of a head, and a transposed convolution (in, out, height, width).
    heads, enlarging = params["decoder"]["mask_heads"], params["decoder"]["upscale1"]["kernel"]
    name = "mask_decoder.output_hypernetworks_mlps.2.layers.1.weight"
    np.testing.assert_array_equal(file.read(name), heads["fc2"]["kernel"][2].T)
    name = "mask_decoder.output_upscaling.0.weight"
    np.testing.assert_array_equal(file.read(name), enlarging.transpose(2, 3, 0, 1))
    with pytest.raises(UserError, match="states decoder_epsilon=1e-05; the model has 1e-06"):
        load_weights(file.path, MODEL)
    assert OfficialSam().settle(SAM, file) == AUTHORS.architecture


def test_tied_frequencies_may_have_either_name(tmp_path):
    params = random_params()
    save_weights(params, MODEL, tmp_path / "one.safetensors", "transformers")
    file = open_weights(tmp_path / "one.safetensors")
    tensors = {key: file.read(key) for key in file}
    first, second = (
        f"{name}.positional_embedding"
        for name in ("shared_image_embedding", "prompt_encoder.shared_embedding")
    )
    for names in ((first, second), (second,)):
        others = {key: value for key, value in tensors.items() if key != first}
        write_tensors(tmp_path / "other.safetensors", others | dict.fromkeys(names, tensors[first]))
        found = load_weights(tmp_path / "other.safetensors", MODEL)
        np.testing.assert_array_equal(found["prompts"]["frequencies"], tensors[first])


def test_tables_are_resized_for_other_images(tmp_path):
    """Linear between the centres, as the authors' `get_rel_pos`; windows keep their tables."""
    params = random_params()
    save_weights(params, MODEL, tmp_path / "out.safetensors", "transformers")
    image = dataclasses.replace(SAM.image, image_size=(20, 28))
    found = load_weights(tmp_path / "out.safetensors",
                         ModelDef(dataclasses.replace(SAM, image=image)))  # fmt: skip
    before, after = (p["image"]["global_blocks"]["attention"] for p in (params, found))
    np.testing.assert_array_equal(after["columns"], before["columns"])
    at = ((np.arange(9) + 0.5) * 13 / 9 - 0.5).clip(0, 12)
    for old, new in zip(before["rows"], after["rows"], strict=True):
        expected = np.stack([np.interp(at, np.arange(13), column) for column in old.T], axis=1)
        np.testing.assert_allclose(new, expected, atol=1e-6)
    windows = (p["image"]["window_blocks"]["attention"]["rows"] for p in (params, found))
    np.testing.assert_array_equal(*windows)


def test_shapes_of_images_and_prompts():
    found = shapes_of((20, 32), POINTS, LABELS)
    assert {name: x.shape for name, x in found.items()} == {
        "masks": (1, 2, 3, 20, 32),
        "scores": (1, 2, 3),
    }
    masks = np.zeros((1, 2, 20, 32), np.float32)
    nothing = np.zeros((1, 2, 0, 2), np.float32), np.zeros((1, 2, 0), np.int32)
    found = shapes_of((20, 32), *nothing, masks, multimask=False)
    assert (found["masks"].shape, found["scores"].shape) == ((1, 2, 1, 20, 32), (1, 2, 1))


def test_kinds_of_points():
    """The embedding of a point depends on its label; padding has none."""
    encoder = PromptEncoder(16, 8, norm_epsilon=1e-6, dtype=jnp.float32, rngs=nnx.Rngs(0))
    points = jnp.full((1, 1, 6, 2), 3.0)
    labels = jnp.asarray([[[0, 1, 2, 3, -1, PADDING]]])
    found = np.asarray(encoder.embed_points(points, labels, (14, 28)))[0, 0]
    frequencies = np.asarray(encoder.frequencies[...], np.float64)
    angles = 2 * np.pi * np.asarray([2 * 3.5 / 28 - 1, 2 * 3.5 / 14 - 1]) @ frequencies
    position = np.concatenate([np.sin(angles), np.cos(angles)])
    for label in range(4):
        expected = position + np.asarray(encoder.kinds[label])
        np.testing.assert_allclose(found[label], expected, atol=1e-5)
    np.testing.assert_array_equal(found[4], encoder.no_point[...])
    np.testing.assert_array_equal(found[5], 0)


def test_boxes_replace_the_point_without_a_position():
    boxes = jnp.asarray([[(1.0, 2.0, 5.0, 7.0)] * 2])
    points, labels = join_prompts(jnp.asarray(POINTS), jnp.asarray(LABELS), boxes)
    np.testing.assert_array_equal(labels[0, 0], [1, 2, 3])
    np.testing.assert_array_equal(points[0, 1], [(0, 0), (1, 2), (5, 7)])
    _, labels = join_prompts(jnp.asarray(POINTS), jnp.asarray(LABELS), None)
    np.testing.assert_array_equal(labels[0, 0], [1, -1])


@pytest.mark.release
@pytest.mark.parametrize("remat", ["none", "mlp", "full"])
def test_results_and_gradients_do_not_depend_on_the_execution(remat):
    params, rng = random_params(), np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(2, 28, 28, 3)), jnp.float32)
    points = jnp.asarray(rng.uniform(0, 28, (2, 3, 2, 2)), jnp.float32)
    labels = jnp.ones((2, 3, 2), jnp.int32)
    masks = jnp.asarray(rng.normal(size=(2, 3, 28, 28)), jnp.float32)

    def loss(params, model):
        found = model.bind(params)(images, points, labels, masks)
        return sum(jnp.mean(jnp.sin(x)) for x in found.values())

    def run(**execution):
        model = ModelDef(SAM, **execution)
        return jax.jit(jax.value_and_grad(lambda p: loss(p, model)))(params)

    value, gradients = run(scan=False, remat="none")
    other, others = run(scan=True, remat=remat)
    np.testing.assert_allclose(other, value, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), others,
                 gradients)  # fmt: skip
    assert not np.any(gradients["prompts"].pop("frequencies"))
    for name in ("no_mask", "no_point", "kinds"):  # not used by these prompts
        gradients["prompts"].pop(name)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient), path


def test_layers_above():
    above = MODEL.layers_above()["image"]
    assert above["patch_embed"]["kernel"] == SAM.image.depth + 1
    assert above["window_blocks"]["norm1"]["scale"].ravel().tolist() == [6, 5, 3, 2]
    assert above["global_blocks"]["norm1"]["scale"].ravel().tolist() == [4, 1]


def image_with(**changes):
    return {"image": dataclasses.replace(SAM.image, **changes)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: image_with(num_global=4), "num_global=4: expected a divisor of depth=6 below it"),
        (lambda: image_with(num_heads=3), "num_heads=3 does not divide width=16"),
        (lambda: image_with(out_width=20), "image.out_width=20: expected a multiple of 8 and of 4"),
        (lambda: {"mask_width": 6}, "mask_width=6: expected a multiple of 4"),
        (lambda: {"num_masks": 0}, "num_masks=0: expected at least 1"),
    ],
)
def test_configs_that_contradict_themselves(make, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SAM, **make())


def test_masks_of_another_size():
    with pytest.raises(UserError, match=r"expected logits of the shape \(1, 2, 28, 28\)"):
        shapes_of((28, 28), POINTS, LABELS, np.zeros((1, 2, 28, 30), np.float32))
    with pytest.raises(UserError, match=r"patch_size=4 does not divide images of 27 x 28 px"):
        shapes_of((27, 28), POINTS, LABELS)
