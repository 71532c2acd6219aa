"""Models by name, ready to call: the public interface of the library.

import vit_jax

clip = vit_jax.create_model("ViT-B-32-quickgelu", weights="ViT-B-32.pt")
images = np.stack([clip.preprocess(path) for path in paths])    # (B, 224, 224, 3)
z = clip.encode_image(images, normalize=True)                   # (B, 512)
t = clip.encode_text(clip.tokenize(["a cat", "a dog"]), normalize=True)
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from vit_jax.data.images import read_image
from vit_jax.data.tokenizers import Tokenizer, open_tokenizer
from vit_jax.errors import UserError
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.pretrained import huggingface, native
from vit_jax.pretrained.stored import StoredModel, is_run, run_spec
from vit_jax.pretrained.weight_files import load_weights, read_architecture

Array = jax.Array | np.ndarray


class PretrainedModel:
    """A model with its parameters, image preprocessing and tokenizer. Calls are compiled.

    Attributes:
        spec: architecture, image preprocessing and spec of the tokenizer.
        definition: the model as a pure function of its parameters.
        params: nested dict of arrays.
    """

    def __init__(self, spec: ModelSpec, definition: ModelDef, params: Params) -> None:
        """Initializes the model.

        Args:
            spec: architecture, image preprocessing and spec of the tokenizer.
            definition: the model as a pure function of its parameters.
            params: nested dict of arrays.
        """
        self.spec, self.definition, self.params = spec, definition, params

        @functools.partial(jax.jit, static_argnames=("method", "options"))
        def apply(params: Params, inputs: jax.Array, method: str, options: tuple) -> Any:
            return getattr(definition.bind(params), method)(inputs, **dict(options))

        self._apply = apply

    def __call__(
        self, images: Float[Array, "batch height width 3"]
    ) -> Float[jax.Array, "batch outputs"]:
        """Computes logits of a classifier, or pooled features of a model without a head.

        Args:
            images: preprocessed images.

        Returns:
            Logits (B, num_classes), float32, or features (B, D).

        Raises:
            UserError: the model does not classify images.
        """
        if not callable(self._module):
            raise UserError(f"{self._kind} models do not classify images; call encode_image")
        return self._run("__call__", images)

    def encode_image(
        self, images: Float[Array, "batch height width 3"], *, normalize: bool = False
    ) -> Float[jax.Array, "batch embed"]:
        """Computes features of images; for a dual encoder, embeddings in the shared space.

        Args:
            images: preprocessed images.
            normalize: whether embeddings are scaled to length 1; for dual encoders only.
        """
        return self._run("encode_image", images, **({"normalize": True} if normalize else {}))

    def encode_text(
        self, tokens: Int[Array, "batch length"], *, normalize: bool = False
    ) -> Float[jax.Array, "batch embed"]:
        """Computes embeddings of texts in the shared space.

        Args:
            tokens: token ids, as returned by `tokenize`.
            normalize: whether embeddings are scaled to length 1.

        Raises:
            UserError: the model has no text tower.
        """
        if not hasattr(self._module, "encode_text"):
            raise UserError(f"{self._kind} models have no text tower")
        return self._run("encode_text", tokens, normalize=normalize)

    def features(
        self, images: Float[Array, "batch height width 3"], layers: Sequence[int]
    ) -> list[jax.Array]:
        """Computes intermediate outputs of the image tower.

        Args:
            images: preprocessed images.
            layers: numbers of blocks or stages; negative numbers count from the last.

        Returns:
            Outputs in the order of `layers`: blocks (B, N, D) of a ViT; stages (B, h, w, C) of a
            Swin or a ResNet.
        """
        return self._run("features", images, layers=tuple(layers))

    def preprocess(
        self, image: str | pathlib.Path | Image.Image | np.ndarray
    ) -> Float[np.ndarray, "height width 3"]:
        """Converts an image to the input of the model.

        Args:
            image: path of a file, PIL image, or uint8 array (H, W, 3) or (H, W, 4).

        Returns:
            float32 array of the size `spec.inputs.size`.
        """
        if isinstance(image, str | pathlib.Path):
            image = read_image(image)
        elif isinstance(image, Image.Image):
            image = np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB"))
        inputs = self.spec.inputs
        return np.asarray(inputs.normalize(jnp.asarray(inputs(image))[None])[0])

    @functools.cached_property
    def tokenize(self) -> Tokenizer:
        """The tokenizer: `tokenize(texts)` returns int32 token ids (B, context_length).

        Raises:
            UserError: the model reads no text.
        """
        if self.spec.tokenizer is None:
            raise UserError(f"{self._kind} models read no text")
        text = self.spec.architecture.text
        return open_tokenizer(
            self.spec.tokenizer, vocab_size=text.vocab_size, context_length=text.context_length
        )

    @property
    def _kind(self) -> str:
        return registry.architecture_name(self.spec.architecture)

    @functools.cached_property
    def _module(self) -> Any:
        """The module without values, whose methods can be inspected."""
        return self.definition.bind(self.definition.shapes())

    def _run(self, method: str, inputs: Any, **options: Any) -> Any:
        return self._apply(self.params, jnp.asarray(inputs), method, tuple(options.items()))


def create_model(
    name: str | None = None,
    weights: str | pathlib.Path | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    format: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    tokenizer: str | None = None,
    shardings: Any = None,
    **changes: Any,
) -> PretrainedModel:
    """Creates a model by name.

    Args:
        name: name of the model here, in timm or in open_clip, see `list_models`. None for weights
            that describe their architecture: the library's own format and Hugging Face folders.
        weights: weight file of any known format, or workdir of a run, whose newest checkpoint is
            read on any devices; None for fresh parameters.
        image_size: side of the images, or their height and width, px; None for that of the name.
            Position embeddings and bias tables of the weights are resized.
        num_classes: number of outputs of the classification head, 0 for none; None for that of the
            name. The weights must have the same head.
        format: name of the format of the weights; None recognises it from the tensor names.
        dtype: compute dtype, "float32" or "bfloat16".
        seed: PRNG seed for fresh parameters.
        tokenizer: spec of the tokenizer, for models whose own one needs a file, as
            "sentencepiece:/path/model".
        shardings: tree of shardings like the parameters; None for the default device.
        **changes: further fields of the architecture, as `drop_path=0.1`. Fields of a tower are
            given as a dict, as `image={"patch_size": 8}`.

    Returns:
        The model with its parameters, image preprocessing and tokenizer.

    Raises:
        UserError: an unknown name or field, or weights that do not fit.
    """
    if weights is not None and is_run(pathlib.Path(weights)):
        given = {"num_classes": num_classes, "image_size": image_size, "format": format, **changes}
        given = {key: value for key, value in {"name": name, **given}.items() if value is not None}
        spec = _run_spec(pathlib.Path(weights), given)
        spec = dataclasses.replace(spec, tokenizer=tokenizer or spec.tokenizer)
        stored = StoredModel(pathlib.Path(weights), spec, ModelDef(spec.architecture, dtype=dtype))
        return PretrainedModel(spec, stored.model, stored.load(shardings))
    if name is None and weights is None:
        raise UserError("create_model: expected a name, or weights that describe their model")
    spec = registry.model_spec(name) if name else _described(str(weights), format)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    title = name or str(weights)
    source = registry.parse_architecture(changes, title, base=spec.architecture)
    architecture = source if image_size is None else _with_image_size(source, image_size, title)
    spec = dataclasses.replace(
        spec, architecture=architecture, tokenizer=tokenizer or spec.tokenizer
    )
    definition = ModelDef(architecture, dtype=dtype)
    if weights is None:
        params = jax.jit(definition.init, out_shardings=shardings)(jax.random.key(seed))
    else:
        params = load_weights(weights, definition, format, source=source, shardings=shardings)
    return PretrainedModel(spec, definition, params)


def _run_spec(workdir: pathlib.Path, given: dict[str, Any]) -> ModelSpec:
    """The spec of a run, whose config describes its model; `given` would change it."""
    if given:
        raise UserError(
            f"{workdir} is the workdir of a run, which is opened as it was trained; found "
            f"{', '.join(f'{key}={value!r}' for key, value in given.items())}. `vit-jax convert "
            "--workdir` writes a weight file, which can be opened in other ways"
        )
    return run_spec(workdir)


def _with_image_size(architecture: Any, size: int | tuple[int, int], title: str) -> Any:
    """An architecture, or its image tower, for images of another size."""
    changes: dict[str, Any] = {"image_size": size}
    if hasattr(architecture, "image"):
        changes = {"image": changes}
    return registry.parse_architecture(changes, title, base=architecture)


def _described(path: str, format: str | None) -> ModelSpec:
    """The spec of weights that describe their model."""
    if native.is_described(path):
        return native.load_spec(path)
    architecture = read_architecture(path, format)
    folder = pathlib.Path(path)
    return huggingface.read_spec(folder if folder.is_dir() else folder.parent, architecture)
