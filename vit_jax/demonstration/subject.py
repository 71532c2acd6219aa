"""The model of a demo, and what it can do."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from vit_jax import workdir as workdir_lib
from vit_jax.data.images import read_image
from vit_jax.errors import UserError
from vit_jax.evaluators import metrics
from vit_jax.inputs import composite
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clipseg.model import CLIPSegConfig
from vit_jax.models.mae.model import MAEConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.pretrained.model import PretrainedModel, create_model
from vit_jax.pretrained.stored import is_run


@dataclasses.dataclass(eq=False)
class Subject:
    """A model that is shown.

    Attributes:
        model: model with its parameters.
        title: name of the run or of the weights.
        templates: prompt templates of labels.
        normalized_pixels: whether a masked autoencoder predicts pixels that are normalised per
            patch.
        detector: model that finds boxes by words, for SAM; None for none.
    """

    model: PretrainedModel
    title: str
    templates: Sequence[str] = ("a photo of a {}.",)
    normalized_pixels: bool = True
    detector: PretrainedModel | None = None

    @property
    def reads_words(self) -> bool:
        """Whether images and texts share a space."""
        spec = self.model.spec
        return type(spec.architecture) is CLIPConfig and spec.tokenizer is not None

    @property
    def encodes_images(self) -> bool:
        """Whether an image has one embedding."""
        architecture = self.model.spec.architecture
        if type(architecture) is MAEConfig:
            return architecture.image.pool != "none"
        return type(architecture) is CLIPConfig or (self.attends and architecture.pool != "none")

    @property
    def attends(self) -> bool:
        """Whether the image tower is a ViT, whose attention can be shown."""
        return type(self.vit) is ViTConfig and self.model.kind in ("vit", "clip", "mae")

    @property
    def vit(self) -> Any:
        """Architecture of the image tower."""
        architecture = self.model.spec.architecture
        return getattr(architecture, "image", architecture)

    @property
    def reconstructs(self) -> bool:
        """Whether the model is a masked autoencoder."""
        return type(self.model.spec.architecture) is MAEConfig

    @property
    def detects(self) -> bool:
        """Whether the model, or its detector, finds boxes by words."""
        return self.boxes_model is not None

    @property
    def boxes_model(self) -> PretrainedModel | None:
        """The model that finds boxes by words."""
        found = (self.model, self.detector)
        return next((m for m in found if m and (m.is_detector or m.reads_captions)), None)

    @property
    def segments_words(self) -> bool:
        """Whether words select masks."""
        is_clipseg = type(self.model.spec.architecture) is CLIPSegConfig
        return is_clipseg or (self.segments_clicks and self.detects)

    @property
    def segments_clicks(self) -> bool:
        """Whether points select masks."""
        return self.model.takes_prompts

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles a function of the bound module and arrays, once per function.

        Args:
            function: function of a module of Python code, not a lambda: it is the key.
        """
        if function not in self._compiled:
            bind = self.model.definition.bind
            self._compiled[function] = jax.jit(lambda params, *x: function(bind(params), *x))
        return functools.partial(self._compiled[function], self.model.params)

    @functools.cached_property
    def _compiled(self) -> dict[Callable[..., Any], Any]:
        return {}

    def pixels(self, image: Any) -> UInt8[np.ndarray, "height width 3"]:
        """Reads an image of any kind, see `read_image`."""
        return composite(read_image(image, max_pixels=self.model.max_image_pixels))

    def input_pixels(self, image: Any) -> UInt8[np.ndarray, "height width 3"]:
        """The part of an image that the model sees, in the size in which it sees it."""
        return self.model.spec.inputs(self.pixels(image))

    def normalized(
        self, pixels: UInt8[np.ndarray, "height width 3"]
    ) -> Float[jax.Array, "1 height width 3"]:
        """Input of the model, from `input_pixels`."""
        return self.model.spec.inputs.normalize(pixels[None])

    def text_embeddings(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Embeddings of texts, each the normalised mean over the prompt templates."""
        prompts = [t.format(text) for text in texts for t in self.templates]
        # One text at a time: another number of labels is not another program.
        rows = [self.model.tokenize(prompt) for prompt in prompts]
        found = [np.asarray(self.model.encode_text(row, normalize=True)) for row in rows]
        mean = np.concatenate(found).reshape(len(texts), len(self.templates), -1).mean(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def image_embedding(self, image: Any) -> Float[np.ndarray, " dim"]:
        """Embedding of an image, of unit length."""
        images = self.model.preprocess(self.pixels(image))[None]
        found = np.asarray(self.model.encode_image(images), np.float32)[0]
        return found / np.linalg.norm(found)


def label_probabilities(subject: Subject, image: Any, labels: Sequence[str]) -> dict[str, float]:
    """Computes the probability of each label for an image.

    Args:
        subject: model whose images and texts share a space.
        image: image of any kind, see `read_image`.
        labels: labels, completed by the prompt templates.

    Returns:
        Softmax over the labels; with a logit bias, which the sigmoid loss trains, the independent
        probability of each.

    Raises:
        UserError: no labels, or an image that cannot be read.
    """
    if not labels:
        raise UserError("no labels: expected some, separated by commas, as cat, dog")
    cosines = subject.text_embeddings(labels) @ subject.image_embedding(image)
    scale, bias = subject.compile(_logit_parameters)()
    if bias is None:
        found = metrics.softmax(float(scale) * cosines)
    else:
        found = metrics.sigmoid(float(scale) * cosines + float(bias))
    return dict(zip(labels, found.tolist(), strict=True))


def split_words(text: str) -> list[str]:
    """Splits words at commas and line ends; the first of equal ones counts.

    Args:
        text: text of a user.
    """
    words = [word.strip() for word in text.replace("\n", ",").split(",")]
    return list(dict.fromkeys(word for word in words if word))


def open_subject(
    weights: str,
    *,
    name: str | None = None,
    tokenizer: str | None = None,
    detector: str | None = None,
    max_image_pixels: int,
) -> Subject:
    """Opens a run or a weight file.

    Args:
        weights: workdir of a run, or weight file.
        name: name of the model, for weights that do not describe theirs.
        tokenizer: spec of the tokenizer, where that of the model needs a file.
        detector: weights or workdir of a detector, for SAM.
        max_image_pixels: largest number of pixels of an image; 0 for any.

    Raises:
        UserError: weights that cannot be opened, or without anything to show.
    """
    model = create_model(name, weights, tokenizer=tokenizer, max_image_pixels=max_image_pixels)
    subject = Subject(model, weights)
    if detector is not None:
        subject.detector = create_model(None, detector, max_image_pixels=max_image_pixels)
    if is_run(weights):
        config = workdir_lib.load_config(weights)
        subject.templates = tuple(config.data.templates)
        subject.normalized_pixels = config.objective.get("normalize_pixels", True)
    shown = (subject.encodes_images, subject.attends, subject.reconstructs, subject.detects)
    if not any((*shown, subject.segments_words, subject.segments_clicks)):
        raise UserError(
            f"{weights}: models of the kind {subject.model.kind} have no tab in the demo; expected "
            "a dual encoder, a ViT, a masked autoencoder, a detector, CLIPSeg or SAM"
        )
    return subject


def _logit_parameters(model: Any) -> Any:
    return model.logit_parameters()
