"""Models by name, ready to call: the public interface of the library.

import vit_jax

clip = vit_jax.create_model("ViT-B-32-quickgelu", weights="ViT-B-32.pt")
images = np.stack([clip.preprocess(path) for path in paths])    # (B, 224, 224, 3)
z = clip.encode_image(images, normalize=True)                   # (B, 512)
t = clip.encode_text(clip.tokenize(["a cat", "a dog"]), normalize=True)
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from vit_jax.compilation_cache import options_to_run_once
from vit_jax.data.images import MAX_PIXELS, check_max_pixels, read_image
from vit_jax.data.tokenizers import Tokenizer, open_tokenizer
from vit_jax.errors import UserError
from vit_jax.inputs.patches import PatchSequence
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.paths import StrPath
from vit_jax.pretrained.changes import changed_spec, stored_source, stored_spec
from vit_jax.pretrained.fetching import fetch_weights
from vit_jax.pretrained.identification import identify
from vit_jax.pretrained.stored import StoredModel, is_run
from vit_jax.pretrained.weight_files import load_pretrained

Array = jax.Array | np.ndarray
# Results of `PretrainedModel.preprocess`, stacked: images, or packed patches of NaFlex models.
Images = Float[Array, "batch height width 3"] | UInt8[Array, "batch packed"]


class PretrainedModel:
    """A model with its parameters, image preprocessing and tokenizer. Calls are compiled.

    Attributes:
        spec: architecture, image preprocessing and spec of the tokenizer.
        definition: the model as a pure function of its parameters.
        params: nested dict of arrays.
        max_image_pixels: largest number of pixels of an image; 0 for any.
    """

    def __init__(
        self,
        spec: ModelSpec,
        definition: ModelDef,
        params: Params,
        max_image_pixels: int = MAX_PIXELS,
    ) -> None:
        """Initializes the model.

        Args:
            spec: architecture, image preprocessing and spec of the tokenizer.
            definition: the model as a pure function of its parameters.
            params: nested dict of arrays.
            max_image_pixels: largest number of pixels of an image; 0 for any.
        """
        self.spec, self.definition, self.params = spec, definition, params
        self.max_image_pixels = max_image_pixels

        @functools.partial(jax.jit, static_argnames=("method", "options"))
        def apply(params: Params, arrays: tuple, method: str, options: tuple) -> Any:
            return getattr(definition.bind(params), method)(*arrays, **dict(options))

        self._apply = apply

    def __call__(
        self,
        images: Images,
        tokens: Int[Array, "batch ..."] | None = None,
    ) -> Any:
        """Computes logits, features of a model without a head, boxes of a detector, or masks.

        Args:
            images: preprocessed images.
            tokens: class prompts of each image (B, C, T), also for CLIPSeg, or a caption of each
                image (B, T) for Grounding DINO and GLIP. `vit_jax.detect` takes words instead.

        Returns:
            Logits (B, num_classes), float32, or features (B, D); of LLaVA and Qwen-VL embeddings
            (B, N, D) for their language model; of a detector a dict of boxes
            (B, Q, 4), logits (B, Q, C or T) and, with OWLv2, objectness (B, Q), or, with GLIP,
            centerness (B, Q); of CLIPSeg a dict of masks, logits (B, C, H, W), and scores (B, C).

        Raises:
            UserError: the model does not classify images, or `tokens` do not suit it.
        """
        if not callable(self._module):
            other = "encode_image" if hasattr(self._module, "encode_image") else "encode_text"
            raise UserError(f"{self.kind} models do not classify images; call {other}")
        if self.takes_prompts:
            raise UserError(
                f"{self.kind} models take prompts: use vit_jax.segment, or with arrays "
                "apply('__call__', images, points, labels)"
            )
        takes_tokens = "tokens" in inspect.signature(self._module.__call__).parameters
        if takes_tokens is (tokens is None):
            expected = "images and tokens" if takes_tokens else "images alone"
            raise UserError(f"{self.kind} models are called with {expected}")
        return self.apply("__call__", self._input(images), *(() if tokens is None else (tokens,)))

    @property
    def is_detector(self) -> bool:
        """Whether the model detects objects by class prompts, see `vit_jax.detect`."""
        return hasattr(self._module, "detect")

    @property
    def reads_captions(self) -> bool:
        """Whether the model detects objects by a caption per image, see `vit_jax.detect`."""
        return hasattr(self._module, "embed_caption")

    @property
    def predicts_centerness(self) -> bool:
        """Whether a detector predicts a box at each position, with its centerness."""
        return hasattr(self._module, "predicts_centerness")

    @property
    def takes_prompts(self) -> bool:
        """Whether the model finds masks by points, boxes and masks, see `vit_jax.segment`."""
        return hasattr(self._module, "predict_masks")

    @property
    def classifies_regions(self) -> bool:
        """Whether the model classifies given boxes, see `vit_jax.classify_boxes`."""
        return hasattr(self._module, "classify_regions")

    def encode_image(
        self, images: Images, *, normalize: bool = False
    ) -> Float[jax.Array, "batch embed"]:
        """Computes features of images; for a dual encoder, embeddings in the shared space.

        Args:
            images: preprocessed images.
            normalize: whether embeddings are scaled to length 1; for dual encoders only.

        Raises:
            UserError: the model does not pool images, as LLaVA, or reads none.
        """
        if not hasattr(self._module, "encode_image"):
            raise UserError(f"{self.kind} models have no pooled features of images")
        options = {"normalize": True} if normalize else {}
        return self.apply("encode_image", self._input(images), **options)

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
            raise UserError(f"{self.kind} models have no text tower")
        return self.apply("encode_text", tokens, normalize=normalize)

    def text_states(
        self, tokens: Int[Array, "batch length"], *, clip_skip: int = 0
    ) -> Float[jax.Array, "batch length dim"]:
        """Computes the features of all tokens that a diffusion model reads.

        Args:
            tokens: token ids, as returned by `tokenize`.
            clip_skip: number of further last blocks that are left out.

        Raises:
            UserError: the model is not a text encoder of a diffusion model.
        """
        if not hasattr(self._module, "text_states"):
            raise UserError(f"{self.kind} models are not text encoders of diffusion models")
        return self.apply("text_states", tokens, clip_skip=clip_skip)

    def features(self, images: Images, layers: Sequence[int]) -> list[jax.Array]:
        """Computes intermediate outputs of the image tower.

        Args:
            images: preprocessed images.
            layers: numbers of blocks or stages; negative numbers count from the last.

        Returns:
            Outputs in the order of `layers`: blocks (B, N, D) of a ViT; stages (B, h, w, C) of a
            Swin or a ResNet.
        """
        return self.apply("features", self._input(images), layers=tuple(layers))

    def preprocess(
        self, image: Any
    ) -> Float[np.ndarray, "height width 3"] | UInt8[np.ndarray, " packed"]:
        """Converts an image to the input of the model.

        Args:
            image: path, bytes or open file of an image, PIL image, or array (H, W) or (H, W, C) of
                uint8, uint16, bool, or floating point in [0, 1]; see `data.images.read_image`.

        Returns:
            float32 array of the size `spec.inputs.size`; for a NaFlex model packed patches, uint8,
            see `inputs.patches.pack`, which are normalised with the batch.

        Raises:
            UserError: the image cannot be read, or has too many pixels.
        """
        inputs = self.spec.inputs
        if 0 in inputs.size:
            raise UserError(f"{self.kind} models read no images")
        pixels = inputs(read_image(image, max_pixels=self.max_image_pixels))
        if inputs.is_naflex:
            return inputs.pack(pixels)
        return np.asarray(inputs.normalize(pixels[None])[0])

    def _input(self, images: Images) -> Any:
        """The input of the model, for which packed patches are normalised."""
        return self.spec.inputs.normalize(images) if np.ndim(images) == 2 else images

    @functools.cached_property
    def tokenize(self) -> Tokenizer:
        """The tokenizer: `tokenize(texts)` returns int32 token ids (B, context_length).

        Raises:
            UserError: the model reads no text, or its tokenizer is unknown.
        """
        text = getattr(self.spec.architecture, "text", None)
        if text is None:
            raise UserError(f"{self.kind} models read no text")
        if self.spec.tokenizer is None:
            raise UserError("the tokenizer is unknown; name the model, or set tokenizer=SPEC")
        return open_tokenizer(
            self.spec.tokenizer, vocab_size=text.vocab_size, context_length=text.context_length
        )

    def apply(self, method: str, *arrays: Any, **options: Any) -> Any:
        """Calls a method of the module, compiled.

        Args:
            method: name of the method, as "encode_image".
            *arrays: arrays that it takes.
            **options: keyword arguments, which are hashable and part of the compiled function.
        """
        given = tuple(x if isinstance(x, PatchSequence) else jnp.asarray(x) for x in arrays)
        return self._apply(self.params, given, method, tuple(options.items()))

    @property
    def kind(self) -> str:
        """Name of the architecture, as "clip"."""
        return registry.architecture_name(self.spec.architecture)

    @functools.cached_property
    def _module(self) -> Any:
        """The module without values, whose methods can be inspected."""
        return self.definition.bind(self.definition.shapes())


def create_model(
    name: str | None = None,
    weights: StrPath | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    weights_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    format: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    tokenizer: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    shardings: Any = None,
    max_image_pixels: int = MAX_PIXELS,
    **changes: Any,
) -> PretrainedModel:
    """Creates a model by name.

    Args:
        name: name of the model here, in timm or in open_clip, see `list_models`. None for weights
            that describe their architecture: the library's own format, and folders of transformers,
            timm or open_clip. Where the folder contradicts the name, the folder is right.
        weights: weight file of any known format, local or in a bucket (gs://, s3://), or workdir of
            a run, whose newest checkpoint is read on any devices; None for fresh parameters.
            `FILE#KEY` is one of several sets of weights in a checkpoint, as `run.pt#model_ema`.
        image_size: side of the images, or their height and width, px; None for that of the weights
            or of the name. Position embeddings and bias tables of the weights are resized.
        weights_size: side of the images that the weights were trained on, or height and width, px;
            for weights that do not describe it, if it is neither that of the name nor square.
        num_classes: number of outputs of the classification head, 0 for none; None for that of the
            weights or of the name. A head of another number than that of the weights is fresh.
        format: name of the format of the weights; None recognises it from the tensor names.
        dtype: compute dtype, "float32" or "bfloat16".
        seed: PRNG seed for fresh parameters, those of a fresh head included.
        tokenizer: spec of the tokenizer, for models whose own one needs a file, as
            "sentencepiece:/path/model".
        inputs: fields of the image preprocessing that differ, as `{"resize": "square"}`; its size
            is `image_size`.
        shardings: tree of shardings like the parameters; None for the default device.
        max_image_pixels: number of pixels above which `preprocess` refuses an image; 0 for none.
        **changes: further fields of the architecture, as `drop_path=0.1`. Fields of a tower are
            given as a dict, as `text={"context_length": 32, "position_resize": "cut"}`.

    Returns:
        The model with its parameters, image preprocessing and tokenizer.

    Raises:
        UserError: an unknown name or field, or weights that do not fit.

    Example:
        >>> model = create_model("vit_ti16", image_size=16, patch_size=8, depth=1, num_classes=3)
        >>> image = np.zeros((20, 30, 3), np.uint8)
        >>> model(model.preprocess(image)[None]).shape
        (1, 3)
    """
    check_max_pixels(max_image_pixels, "max_image_pixels")
    weights = None if weights is None else fetch_weights(weights)
    if weights is not None and is_run(weights):
        given: dict[str, Any] = {"num_classes": num_classes, "image_size": image_size}
        given |= {"format": format, "weights_size": weights_size, "inputs": inputs, **changes}
        given = {key: value for key, value in {"name": name, **given}.items() if value is not None}
        spec = stored_spec(weights, given)
        spec = dataclasses.replace(spec, tokenizer=tokenizer or spec.tokenizer)
        stored = StoredModel(weights, spec, ModelDef(spec.architecture, dtype=dtype))
        return PretrainedModel(spec, stored.model, stored.load(shardings), max_image_pixels)
    if name is None and weights is None:
        raise UserError("create_model: expected a name, or weights that describe their model")
    named, title = registry.model_spec(name) if name else None, name or str(weights)
    if weights is None:
        assert named is not None
        if num_classes is not None:
            changes["num_classes"] = num_classes
        spec = changed_spec(named, changes, image_size, tokenizer, inputs, title)
        definition = ModelDef(spec.architecture, dtype=dtype)
        init = jax.jit(
            definition.init, out_shardings=shardings, compiler_options=options_to_run_once()
        )
        params = init(jax.random.key(seed))
        return PretrainedModel(spec, definition, params, max_image_pixels)
    if named is not None:
        architecture = registry.parse_architecture(changes, title, base=named.architecture)
        named = dataclasses.replace(named, architecture=architecture)
    found = identify(weights, named, format, headless=num_classes == 0)
    source = stored_source(found, changes, weights_size, title)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    spec = changed_spec(found.spec(title), changes, image_size, tokenizer, inputs, title)
    definition = ModelDef(spec.architecture, dtype=dtype)
    params = load_pretrained(
        weights, definition, source, format=format, seed=seed, shardings=shardings
    )
    return PretrainedModel(spec, definition, params, max_image_pixels)
