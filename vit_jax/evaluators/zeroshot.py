"""Zero-shot classification by prompts (CLIP, section 3.1)."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from vit_jax.errors import UserError, check_name
from vit_jax.evaluators import metrics, prompts
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params

GALLERIES = ("all", "present")


class ZeroShot:
    """Accuracy of choosing an image's class by the text closest to it.

    Metrics, fractions in [0, 1] of all images of the source: `top1`, `top5`,
    `mean_per_class_recall`, and `ece`, the calibration error of the model's own probabilities.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        data: str,
        templates: str | Sequence[str] = ("{}",),
        class_names: str | Sequence[str] = "",
        classes: str = "all",
        names_file: str | None = None,
        confusion_file: str | None = None,
    ):
        """Opens the source.

        Args:
            embedder: of images and texts.
            data: source with labels, as emoji:heldout_names.
            templates: prompts with one `{}`, or a name from `prompts.templates`.
            class_names: words for the classes, see `prompts.class_names`.
            classes: "all" classes of the source compete, or those "present" in its images.
            names_file: for a flat folder, the file of its labels.
            confusion_file: CSV file that the confusion matrix is written to.
        """
        check_name(classes, GALLERIES, "classes")
        self._embedder, self._templates = embedder, prompts.templates(templates)
        self._source = embedder.open(data, names_file)
        own, labels = self._source.class_names, self._source.labels
        if own is None or labels is None:
            raise UserError(f"{data} has no classes: zero-shot classification needs them")
        names = prompts.class_names(class_names, own)
        check_labels(labels, len(names), data)
        gallery = np.unique(labels) if classes == "present" else np.arange(len(names))
        self.class_names = [names[i] for i in gallery]
        self._labels = np.searchsorted(gallery, labels)
        self._confusion_file = confusion_file

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics."""
        images = self._embedder.images(params, self._source)
        classes = self._embedder.prompts(params, self.class_names, self._templates)
        scores = images @ classes.T
        probabilities = self._embedder.probabilities(params, scores)
        yield from metrics.classification(scores, self._labels, probabilities)
        if self._confusion_file and jax.process_index() == 0:
            predicted = metrics.predictions(scores)
            metrics.write_confusion(self._confusion_file, predicted, self._labels, self.class_names)


def check_labels(labels: np.ndarray, classes: int, data: str) -> None:
    """Refuses labels beyond the classes, as of a source without a label for some examples."""
    if wrong := sorted(set(labels[(labels < 0) | (labels >= classes)].tolist())):
        raise UserError(
            f"{data} has the labels {wrong[:5]}: expected 0 to {classes - 1}, its {classes} classes"
        )
