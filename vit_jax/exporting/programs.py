"""The functions of a model as StableHLO, through `jax.export`.

A program is a function of the weights, a flat dict of arrays, and of one array whose first
dimension is symbolic: any batch size.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export

from vit_jax.errors import MissingPackageError, UserError, check_name
from vit_jax.flops import traced_flops
from vit_jax.models import partitioning
from vit_jax.pretrained.model import PretrainedModel

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LABELS = "labels"  # embeddings of the labels (C, D), beside the parameters
_SEED = 0  # of the inputs that the programs are compared on

Weights = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of a model before its export.

    Attributes:
        call: function of the weights and a batch of images or token ids.
        shape: shape of one example.
        dtype: dtype of the batch.
        vocabulary: end of the values of an example: 256 for pixels, else the number of token ids.
    """

    call: Callable[[Weights, jax.Array], jax.Array]
    shape: tuple[int, ...]
    dtype: str
    vocabulary: int = 256

    def random(self, count: int) -> np.ndarray:
        """Returns random examples.

        Args:
            count: number of examples.
        """
        values = np.random.default_rng(_SEED).integers(0, self.vocabulary, (count, *self.shape))
        return values.astype(self.dtype)

    def flops(self, weights: Weights) -> int:
        """Counts the operations of one example.

        Args:
            weights: weights of the model.
        """
        return traced_flops(jax.make_jaxpr(self.call)(weights, self.random(1)))


def flat_weights(model: PretrainedModel) -> Weights:
    """Returns the parameters of a model by their paths, as "blocks/norm1/scale".

    Args:
        model: model.
    """
    return traverse_util.flatten_dict(model.params, sep="/")


def programs(
    model: PretrainedModel, labels: Sequence[str] = ()
) -> tuple[dict[str, Program], Weights]:
    """Lists the functions of a model that are exported.

    Images are uint8 (B, height, width, 3): normalisation is part of the program, resizing is not.
    Results are float32. `classify` gives logits, `encode_image` features, of a dual encoder
    embeddings of length 1 in the shared space, as `encode_text` of token ids.

    Args:
        model: classifier, image encoder or dual encoder.
        labels: texts; with them a dual encoder has `classify`, whose logits are for these texts.

    Returns:
        Programs by name, and their weights.

    Raises:
        UserError: a model of another kind or for images of several sizes, or labels for a model
            without a text tower.
    """
    module = model.definition.bind(model.definition.shapes())
    dual = hasattr(module, "encode_text")
    _check(model, module, dual=dual, labels=labels)
    architecture, inputs = model.spec.architecture, model.spec.inputs

    def bound(weights: Weights) -> Any:
        params = {path: x for path, x in weights.items() if path != LABELS}
        return model.definition.bind(traverse_util.unflatten_dict(params, sep="/"))

    def method(name: str, prepare: Callable = jnp.asarray, **options: Any) -> Callable:
        def call(weights: Weights, batch: jax.Array) -> jax.Array:
            result = getattr(bound(weights), name)(prepare(batch), **options)
            return result.astype(jnp.float32)

        return call

    def zero_shot(weights: Weights, images: jax.Array) -> jax.Array:
        scale, bias = bound(weights).logit_parameters()
        z = bound(weights).encode_image(inputs.normalize(images), normalize=True)
        return z @ weights[LABELS].T * scale + (0.0 if bias is None else bias)

    options: dict[str, Any] = {"normalize": True} if dual else {}
    size, weights = (*inputs.size, 3), flat_weights(model)
    encode = method("encode_image", inputs.normalize, **options)
    found = {"encode_image": Program(encode, size, "uint8")}
    if dual:
        shape, vocabulary = (architecture.text.context_length,), architecture.text.vocab_size
        found["encode_text"] = Program(method("encode_text", **options), shape, "int32", vocabulary)
    elif getattr(architecture, "num_classes", 0):
        found["classify"] = Program(method("__call__", inputs.normalize), size, "uint8")
    if labels:
        words = model.encode_text(model.tokenize(list(labels)), normalize=True)
        weights[LABELS] = words.astype(jnp.float32)
        found["classify"] = Program(zero_shot, size, "uint8")
    return found, weights


def _check(model: PretrainedModel, module: Any, *, dual: bool, labels: Sequence[str]) -> None:
    prompted = model.is_detector or model.takes_prompts or model.reads_captions
    both = dual and callable(module)  # CLIPSeg: images and tokens in one call
    if prompted or both or model.classifies_regions or not hasattr(module, "encode_image"):
        raise UserError(
            f"{model.kind} models are not exported: expected a classifier, an image encoder or a "
            "dual encoder"
        )
    if model.spec.inputs.is_naflex:
        raise UserError(
            "exported programs take images of one size; found inputs.resize='naflex': create the "
            "model with inputs={'resize': 'squash'}"
        )
    if labels and not dual:
        raise UserError(f"{model.kind} models have no text tower: leave the labels out")


def export_program(program: Program, weights: Weights, platforms: Sequence[str]) -> bytearray:
    """Traces a program for some platforms and serialises it.

    Args:
        program: function of a model.
        weights: weights of the model, or their shapes.
        platforms: names in `PLATFORMS`.

    Raises:
        UserError: unknown platform.
        MissingPackageError: flatbuffers is not installed.
    """
    check_platforms(platforms)
    batch = export.symbolic_shape("batch")
    example = jax.ShapeDtypeStruct((*batch, *program.shape), program.dtype)
    shapes = jax.eval_shape(lambda x: x, weights)
    jitted = jax.jit(program.call)
    # Kernels for one kind of device are left out: the program runs on every platform.
    with partitioning.use(platform="cpu", attention="einsum"):
        return export.export(jitted, platforms=list(platforms))(shapes, example).serialize()


def largest_difference(program: Program, serialised: bytearray, weights: Weights) -> float:
    """Compares a reloaded program with the model, on two random examples.

    Args:
        program: function of a model.
        serialised: result of `export_program`; its platforms include that of this process.
        weights: weights of the model.

    Returns:
        Largest difference, relative to the largest value.
    """
    examples = program.random(2)
    expected = np.asarray(jax.jit(program.call)(weights, examples))
    found = np.asarray(export.deserialize(serialised).call(weights, examples))
    largest = max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    return float(np.abs(found - expected).max() / largest)


def check_platforms(platforms: Sequence[str]) -> None:
    """Checks, before a model is loaded, that programs can be exported.

    Args:
        platforms: names of platforms.

    Raises:
        UserError: unknown platform, or none.
        MissingPackageError: flatbuffers is not installed.
    """
    for name in platforms or [""]:
        check_name(name, PLATFORMS, "platform")
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise MissingPackageError(
            "programs are serialised with flatbuffers: pip install 'vit_jax[export]'"
        ) from None
