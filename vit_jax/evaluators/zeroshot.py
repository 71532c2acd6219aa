"""Zero-shot classification with class prompts (CLIP, section 3.1)."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Float

from vit_jax.errors import UserError, check_name
from vit_jax.evaluators import metrics, predictions, prompts
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.labels import check_labels
from vit_jax.models.definition import Params
from vit_jax.paths import as_path

CANDIDATES = ("all", "present")


class ZeroShot:
    """Accuracy of assigning each image to the class whose text embedding is closest.

    Metrics, fractions in [0, 1] of all images: `top1`, `top5`, `mean_per_class_recall`, and `ece`,
    the expected calibration error of the model's probabilities. Of classes with equal names, as two
    of ImageNet's are, the first one is predicted, as in published results.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: labelled source, as emoji:heldout_names.
            templates: prompt templates, each with one `{}`, or the name of a set of templates, see
                `prompts.templates`.
            class_names: names of the classes, see `prompts.class_names`.
            classes: candidates for the prediction: "all" classes of the source, or those "present"
                in its images.
            names_file: file with the labels of a flat folder.
            confusion_file: CSV file to which the confusion matrix is written.
        """

        data: str
        templates: str | tuple[str, ...] = ("{}",)
        class_names: str | tuple[str, ...] = ""
        classes: str = "all"
        names_file: str | None = None
        confusion_file: str | None = None

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source.

        Args:
            config: keys of the evaluator.
            embedder: computes embeddings of images and texts.

        Raises:
            UserError: a model without a text encoder, a source without classes, unknown templates,
                class names or candidates, or texts that the tokenizer refuses.
        """
        self._check_model(embedder)
        check_name(config.classes, CANDIDATES, "classes")
        self._config, self._embedder = config, embedder
        self._templates = prompts.templates(config.templates)
        if config.confusion_file:  # a URL that cannot be written is refused now
            as_path(config.confusion_file)
        self._source = embedder.open_source(config.data, config.names_file)
        own_names, labels = self._source.class_names, self._source.labels
        if own_names is None or labels is None:
            raise UserError(f"{config.data} has no classes: zero-shot classification needs them")
        names = prompts.class_names(config.class_names, own_names)
        check_labels(labels, len(names), config.data)
        present = config.classes == "present"
        candidates = np.unique(labels) if present else np.arange(len(names))
        self.class_names = [names[i] for i in candidates]
        # Texts that the model does not read are refused now, as of classes without own prompts.
        embedder.tokenize([t.format(x) for t in self._templates[:2] for x in self.class_names])
        self.targets = np.searchsorted(candidates, labels)

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        scores, probabilities = self._scores(params)
        contents = [metrics.text_content(name) for name in self.class_names]
        yield from metrics.classification(scores, self.targets, probabilities, contents)
        self._found = predictions.top_classes(scores, probabilities, self.targets)
        if self._config.confusion_file and jax.process_index() == 0:
            metrics.write_confusion(
                self._config.confusion_file,
                metrics.predictions(scores),
                self.targets,
                self.class_names,
            )

    def _check_model(self, embedder: Embedder) -> None:
        """Refuses models for which there are no scores."""
        embedder.require_text_embeddings()

    def _scores(
        self, params: Params
    ) -> tuple[Float[np.ndarray, "examples classes"], Float[np.ndarray, "examples classes"]]:
        """Computes scores and probabilities of the classes."""
        images = self._embedder.image_embeddings(params, self._source)
        classes = self._embedder.class_embeddings(params, self.class_names, self._templates)
        scores = images @ classes.T
        return scores, self._embedder.probabilities(params, scores)

    def predicted(self, limit: int) -> predictions.Arrays:
        """Returns what the last `run` predicted, see `predictions.classification`."""
        max_pixels = self._embedder.max_image_pixels
        return predictions.classification(
            self._found, self.class_names, self._source, limit=limit, max_pixels=max_pixels
        )
