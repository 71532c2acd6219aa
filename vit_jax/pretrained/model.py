"""Models by name, ready to call: the library's public interface.

import vit_jax

clip = vit_jax.create_model("ViT-B-32-quickgelu", weights="ViT-B-32.pt")
images = np.stack([clip.preprocess(path) for path in paths])    # (B, 224, 224, 3)
z = clip.encode_image(images, normalize=True)                   # (B, 512)
t = clip.encode_text(clip.tokenize(["a cat", "a dog"]), normalize=True)
"""

import dataclasses
import fnmatch
import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax.data.images import read_image
from vit_jax.data.tokenizers import Tokenizer, make_tokenizer
from vit_jax.errors import UserError, unknown
from vit_jax.flops import traced_flops
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec, image_size
from vit_jax.pretrained import huggingface, native
from vit_jax.weights import load_weights, read_architecture


class PretrainedModel:
    """A model with its parameters, its preprocessing and its tokenizer. Calls are compiled.

    Attributes:
        spec: architecture, preprocessing and the tokenizer's spec.
        definition: the model as a pure function of its parameters.
        params: nested dict of arrays.
    """

    def __init__(self, spec: ModelSpec, definition: ModelDef, params: Params):
        self.spec, self.definition, self.params = spec, definition, params

        @functools.partial(jax.jit, static_argnames=("method", "options"))
        def apply(params: Params, inputs: jax.Array, method: str, options: tuple) -> Any:
            return getattr(definition.bind(params), method)(inputs, **dict(options))

        self._apply = apply

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Logits (B, num_classes) of a classifier, features (B, D) of a tower without a head.

        Args:
            images: (B, H, W, 3), preprocessed.
        """
        self._check("__call__", "classifies pictures")
        return self._run("__call__", images)

    def encode_image(self, images: jax.Array | np.ndarray, *, normalize: bool = False) -> jax.Array:
        """Features of images (B, D); for pairs of towers in the shared space, float32.

        Args:
            images: (B, H, W, 3), preprocessed.
            normalize: whether embeddings of a pair get length 1.
        """
        return self._run("encode_image", images, **({"normalize": True} if normalize else {}))

    def encode_text(self, tokens: jax.Array | np.ndarray, *, normalize: bool = False) -> jax.Array:
        """Embeddings of texts (B, D), float32.

        Args:
            tokens: (B, context_length), as `tokenize` makes them.
            normalize: whether they get length 1.
        """
        self._check("encode_text", "has a text tower")
        return self._run("encode_text", tokens, normalize=normalize)

    def features(self, images: jax.Array | np.ndarray, layers: Sequence[int]) -> list[jax.Array]:
        """Intermediate outputs of the image tower in the order of `layers`; -1 is the last.

        Blocks (B, N, D) of a ViT; stages (B, h, w, C), channels last, of a Swin or a ResNet.
        """
        return self._run("features", images, layers=tuple(layers))

    def preprocess(self, picture: str | pathlib.Path | Image.Image | np.ndarray) -> np.ndarray:
        """An image as the model's input, float32 (image_size, image_size, 3).

        Args:
            image: a file, a PIL image, or uint8 (H, W, 3) or (H, W, 4).
        """
        if isinstance(picture, str | pathlib.Path):
            picture = read_image(picture)
        elif isinstance(picture, Image.Image):
            picture = np.asarray(picture.convert("RGBA" if "A" in picture.getbands() else "RGB"))
        inputs = self.spec.inputs
        return np.asarray(inputs.normalize(jnp.asarray(inputs(picture))[None])[0])

    @functools.cached_property
    def tokenize(self) -> Tokenizer:
        """The tokenizer: `tokenize(texts)` is int32 (B, context_length)."""
        if self.spec.tokenizer is None:
            raise UserError(
                f"a model of the family {registry.architecture_name(self.spec.architecture)} reads no text"
            )
        text = self.spec.architecture.text
        return make_tokenizer(
            self.spec.tokenizer, vocab_size=text.vocab_size, context_length=text.context_length
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the model was made for, px."""
        return image_size(self.spec.architecture)

    def _run(self, method: str, inputs: Any, **options: Any) -> Any:
        return self._apply(self.params, jnp.asarray(inputs), method, tuple(options.items()))

    def _check(self, method: str, what: str) -> None:
        if method not in vars(type(self.definition.bind(self.definition.shapes()))):
            raise UserError(
                f"no model of the family {registry.architecture_name(self.spec.architecture)} {what}"
            )


def create_model(
    name: str | None = None,
    weights: str | pathlib.Path | None = None,
    *,
    format: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    tokenizer: str | None = None,
    shardings: Any = None,
    **changes: Any,
) -> PretrainedModel:
    """A model by name.

    Args:
        name: ours, timm's or open_clip's, see `list_models`; None for weights that carry their
            description: those of `convert --to vit_jax`, and Hugging Face's folders.
        weights: file of any known format; None for fresh parameters.
        format: of the weights; None recognises it from the tensors' names.
        dtype: compute type, "float32" or "bfloat16".
        seed: of fresh parameters.
        tokenizer: its spec, where the model's own needs a file, as "sentencepiece:/path/model".
        shardings: tree of shardings like the parameters', for weights; None for one device.
        **changes: fields of the architecture, as `num_classes=10`.

    Raises:
        UserError: unknown name or field, or weights that do not fit.
    """
    if name is None and weights is None:
        raise UserError("create_model needs a name, or weights that carry their description")
    spec = registry.model_spec(name) if name else _described(str(weights), format)
    fields = {field.name for field in dataclasses.fields(spec.architecture)}
    for key in changes:
        if key not in fields:
            raise unknown(key, fields, f"field of {name or weights}")
    architecture = dataclasses.replace(spec.architecture, **changes)
    spec = dataclasses.replace(
        spec, architecture=architecture, tokenizer=tokenizer or spec.tokenizer
    )
    definition = ModelDef(architecture, dtype=dtype)
    if weights is None:
        params = jax.jit(definition.init, out_shardings=shardings)(jax.random.key(seed))
    else:
        params = load_weights(weights, definition, format, shardings)
    return PretrainedModel(spec, definition, params)


def _described(path: str, format: str | None) -> ModelSpec:
    """What weights tell of themselves."""
    if native.is_described(path):
        return native.load_spec(path)
    _, architecture = read_architecture(path, format)
    folder = pathlib.Path(path)
    return huggingface.read_spec(folder if folder.is_dir() else folder.parent, architecture)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A registered model.

    Attributes:
        name: as `create_model` takes it.
        family: of its architecture.
        resolution: height and width of its images, px.
    """

    name: str
    family: str
    resolution: tuple[int, int]

    @functools.cached_property
    def parameters(self) -> int:
        """Number of parameters, running statistics of batch norms included."""
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self._definition.shapes()))

    @functools.cached_property
    def gflops(self) -> float:
        """Billions of operations forward for one image (and one text), two a multiply-add."""
        definition, size = self._definition, self.resolution
        images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)

        def forward(params: Params, images: jax.Array) -> Any:
            model = definition.bind(params)
            if not hasattr(model, "text"):
                return model.encode_image(images)
            tokens = jnp.zeros((1, model.text.config.context_length), jnp.int32)
            return model.encode_image(images), model.encode_text(tokens)

        return traced_flops(jax.make_jaxpr(forward)(definition.shapes(), images)) / 1e9

    @functools.cached_property
    def _definition(self) -> ModelDef:
        return ModelDef(registry.model_spec(self.name).architecture)


def list_models(pattern: str = "*") -> list[ModelInfo]:
    """The registered models whose names match, sorted; sizes are computed when they are read.

    Args:
        pattern: with `*` and `?`, as "clip_*".
    """
    return [
        ModelInfo(
            name, registry.architecture_name(spec.architecture), image_size(spec.architecture)
        )
        for name in registry.model_names()
        if fnmatch.fnmatch(name, pattern)
        for spec in [registry.model_spec(name)]
    ]
