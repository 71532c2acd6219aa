"""Generation with a cache against full passes of the decoders over all tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.evaluators.captioning import caption_logits
from vit_jax.models.cappa.model import CapPaConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.clip_captioner.model import CLIPCaptionerConfig
from vit_jax.models.coca.model import CoCaConfig
from vit_jax.models.definition import ModelDef
from vit_jax.models.layers.decoder import DecoderConfig
from vit_jax.models.layers.generation import beam_search, sample
from vit_jax.models.siglip2.model import SigLIP2Config
from vit_jax.models.vit.model import ViTConfig
from vit_jax.parallel.mesh import batch_sharding, make_mesh
from vit_jax.parallel.sharding import parameter_shardings, tracing_for

IMAGES, PATCHES, LENGTH, VOCABULARY, BEAMS = 4, 5, 7, 13, 3
PAD, START, END = 0, 1, 2
SIZES = {"vocab_size": VOCABULARY, "context_length": LENGTH, "width": 8, "num_heads": 2}
VIT = {"image_size": 4, "patch_size": 2, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
TEXT = TextConfig(**SIZES, depth=2, mlp_dim=12, activation="gelu", pool="last")
DUAL = {
    "image": ViTConfig(**VIT, pool="mean"),
    "text": TEXT,
    "decoder": DecoderConfig(**SIZES, depth=2, mlp_dim=12),
    "embed_dim": 8,
}
ARCHITECTURES = {
    "cappa": CapPaConfig(image=DUAL["image"], decoder=DUAL["decoder"]),
    "coca": CoCaConfig(
        image=ViTConfig(**VIT, pool="none"),
        text=TEXT,
        decoder=DecoderConfig(**SIZES, depth=2, mlp_dim=12, use_bias=True, interleaved=True),
        embed_dim=8,
        num_queries=PATCHES + 1,
        pooler_heads=2,
    ),
    "clip_captioner": CLIPCaptionerConfig(**DUAL),
    "siglip2": SigLIP2Config(
        **DUAL, head_dim=8, bottleneck=6, prototypes=12, patch_bottleneck=4, patch_prototypes=18
    ),
}
PROMPTS = {"greedy": (), "beam": (5,), "top_p": (5, 7)}


def full_passes(model, memory):
    """Logits of the next token; the cache holds the tokens so far."""

    def next_logits(before, at, cache):
        tokens = jnp.where(at > 0, cache.at[0, :, at - 1].set(before), cache)
        rows = jnp.repeat(memory, tokens.shape[1] // len(memory), axis=0)
        return model.decoder.logits(model.caption_states(tokens[0], rows)[:, at]), tokens

    return next_logits


def generate(method, next_logits, cache, given):
    ids = {"end_id": END, "pad_id": PAD, "given": given}
    if method == "top_p":
        keys = jax.random.split(jax.random.key(0), IMAGES)
        return sample(next_logits, cache, keys, LENGTH, top_p=0.9, temperature=1.5, **ids)
    beams = BEAMS if method == "beam" else 1
    return beam_search(next_logits, cache, IMAGES, LENGTH, beams=beams, **ids)


def random_model(name, scan=True):
    """A model, its parameters, and the patches of images."""
    definition, rng = ModelDef(ARCHITECTURES[name], scan=scan), np.random.default_rng(3)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.float32(
            rng.normal(loc=path[-1].key == "scale", scale=0.5, size=x.shape)
        ),
        definition.shapes(),
    )
    return definition, params, jnp.float32(rng.normal(size=(IMAGES, PATCHES, 8)))


def release(*cases):
    return [pytest.param(*case, marks=pytest.mark.release) for case in cases]


@pytest.mark.parametrize(
    ("name", "method", "scan"),
    [
        ("cappa", "beam", True),
        ("coca", "top_p", True),
        *release(
            ("coca", "beam", True),
            ("cappa", "greedy", True),
            ("cappa", "top_p", False),
            ("coca", "greedy", False),
            *((name, method, True) for name in ("clip_captioner", "siglip2") for method in PROMPTS),
        ),
    ],
)
def test_equals_full_passes(name, method, scan):
    """Same tokens, and the likelihoods of these tokens in one pass."""
    definition, params, memory = random_model(name, scan)
    rows = IMAGES * (BEAMS if method == "beam" else 1)
    given = (START,) * definition.bind(definition.shapes()).num_given + PROMPTS[method]

    @jax.jit
    def run(params):
        model = definition.bind(params)
        found = generate(
            method, caption_logits(model, memory), model.caption_cache(rows, LENGTH), given
        )
        tokens_so_far = jnp.full((1, rows, LENGTH), PAD)
        expected = generate(method, full_passes(model, memory), tokens_so_far, given)
        logits = model.decoder.logits(model.caption_states(found.tokens, memory))
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), found.tokens[..., None], axis=2)
        predicted = (found.tokens != PAD) & (jnp.arange(LENGTH) >= len(given))
        return found, expected.tokens, jnp.sum(own[..., 0], axis=1, where=predicted)

    found, tokens, likelihoods = run(params)
    np.testing.assert_array_equal(found.tokens, tokens)
    np.testing.assert_allclose(found.scores, likelihoods, rtol=1e-5)
    assert tokens[:, : len(given)].tolist() == [list(given)] * IMAGES
    assert len(np.unique(tokens, axis=0)) > 1


@pytest.mark.release
@pytest.mark.parametrize("name", ["cappa", "coca"])
def test_beams_on_eight_devices(name):
    """Examples and heads are split over the devices, with their caches."""
    definition, params, memory = random_model(name)
    mesh = make_mesh(tensor=2)

    def run(params, memory):
        model = definition.bind(params)
        cache = model.caption_cache(IMAGES * BEAMS, LENGTH)
        return generate("beam", caption_logits(model, memory), cache, (START, 5))

    def run_split(params, memory):
        with tracing_for(definition, mesh):
            return run(params, memory)

    places = parameter_shardings(definition, mesh), batch_sharding(mesh)
    split = jax.jit(run_split, in_shardings=places)(params, memory)
    whole = jax.jit(run)(params, memory)
    np.testing.assert_array_equal(split.tokens, whole.tokens)
    np.testing.assert_allclose(split.scores, whole.scores, rtol=1e-5)


def test_the_cache_has_the_compute_type():
    definition = ModelDef(ARCHITECTURES["coca"], dtype="bfloat16")
    model = definition.bind(definition.shapes())
    found = jax.eval_shape(lambda: model.caption_cache(6, LENGTH))
    # Blocks, rows, tokens, heads and their features, of the text tower and of the decoder.
    assert [x.shape for x in jax.tree.leaves(found)] == [(2, 6, LENGTH, 2, 4)] * 4
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    with pytest.raises(UserError, match="found 8 tokens per caption, the text tower expects at"):
        model.caption_cache(6, LENGTH + 1)
