"""Generation of captions with cached keys and values, compared with a full pass per token.

    python -m benchmarks.generation_speed [--model cappa_b16] [--images 8] [--length 64]

Both generate captions of the same random patches, with the same random weights, in one process and
in turn; no caption ends before the length. The encoder of the images is not run. The first round,
with compilation, does not count. Prints seconds per batch and the ratio of the medians.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vit_jax import cli
from vit_jax.evaluators.captioning import caption_logits
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.layers.generation import Generated, NextLogits, beam_search
from vit_jax.models.registry import model_spec

_MODEL = flags.DEFINE_string("model", "cappa_b16", "Captioner.")
_IMAGES = flags.DEFINE_integer("images", 8, "Images per batch.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens per caption.", lower_bound=2)
_BEAMS = flags.DEFINE_integer("beams", 1, "Captions per image; 1 is greedy.", lower_bound=1)
_SCAN = flags.DEFINE_bool("scan", True, "Scan the blocks; see config.compute.scan.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds that count.", lower_bound=1)


def full_passes(model: Any, memory: jax.Array) -> NextLogits:
    """Logits of the next token from all tokens so far, which are the cache (1, rows, T)."""
    patches = jnp.repeat(memory, _BEAMS.value, axis=0)

    def next_logits(before: jax.Array, at: jax.Array, cache: jax.Array) -> Any:
        tokens = jnp.where(at > 0, cache.at[0, :, at - 1].set(before), cache)
        return model.decoder.logits(model.caption_states(tokens[0], patches)[:, at]), tokens

    return next_logits


def generate(definition: ModelDef, params: Params, memory: jax.Array, cached: bool) -> Generated:
    """Generates one caption per image.

    Args:
        definition: captioner.
        params: its parameters.
        memory: patches of the images.
        cached: whether keys and values are kept.
    """
    model, rows = definition.bind(params), len(memory) * _BEAMS.value
    pad_id, vocabulary = model.decoder.config.pad_id, model.decoder.config.vocab_size
    if cached:
        next_logits, cache = caption_logits(model, memory), model.caption_cache(rows, _LENGTH.value)
    else:
        next_logits = full_passes(model, memory)
        cache = jnp.full((1, rows, _LENGTH.value), pad_id, jnp.int32)
    return beam_search(
        next_logits,
        cache,
        len(memory),
        _LENGTH.value,
        end_id=vocabulary,  # an id that no token has
        pad_id=pad_id,
        given=(1,) * model.num_given,
        beams=_BEAMS.value,
    )


def main() -> None:
    """Times both and prints a row per method."""
    definition = ModelDef(model_spec(_MODEL.value).architecture, scan=_SCAN.value)
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.jit(definition.init)(keys[0])
    head = params["decoder"]["head"]["kernel"]  # zeros in some models
    params["decoder"]["head"]["kernel"] = 0.02 * jax.random.normal(keys[1], head.shape)
    images = jnp.zeros((_IMAGES.value, *definition.architecture.image.image_size, 3))
    shape = jax.eval_shape(lambda p: definition.bind(p).encode_memory(images), params).shape
    memory = jax.random.normal(keys[2], shape)
    methods = {"cached": True, "full passes": False}
    run = jax.jit(
        lambda p, memory, cached: generate(definition, p, memory, cached).tokens, static_argnums=2
    )
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    tokens = {}
    for count in range(_ROUNDS.value + 1):
        for name, cached in methods.items():
            start = time.perf_counter()
            tokens[name] = np.asarray(run(params, memory, cached))
            if count:
                seconds[name].append(time.perf_counter() - start)
    print(f"{_MODEL.value}, {_IMAGES.value} images, {_BEAMS.value} beams, {_LENGTH.value} tokens")
    for name, values in seconds.items():
        print(f"{name:<12}", *(f"{value:8.2f}" for value in values), "s")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"ratio of the medians: {medians['full passes'] / medians['cached']:.1f}")
    print(f"equal tokens: {np.mean(tokens['cached'] == tokens['full passes']):.1%}")


if __name__ == "__main__":
    cli.run(main)
