"""Accuracy of a classifier's own head."""

import json
import pathlib
import re
from collections.abc import Iterator

import jax
import numpy as np

from vit_jax.data.sources import Source
from vit_jax.errors import UserError, check_name
from vit_jax.evaluators import metrics
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.zeroshot import GALLERIES, check_labels
from vit_jax.models.definition import Params

_IMAGENET_FILE = re.compile(r"ILSVRC2012_val_(\d{8})")


class Classification:
    """Accuracy on a labelled source.

    Metrics, fractions in [0, 1] of all images: `top1`, `top5`, `mean_per_class_recall`, `ece` (of
    the softmax), and with `real_labels` `real_top1`.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        data: str,
        names_file: str | None = None,
        classes: str = "all",
        real_labels: str | None = None,
        confusion_file: str | None = None,
    ):
        """Opens the source.

        Args:
            embedder: of images.
            data: source with labels, as mnist5k:test.
            names_file: for a flat folder, the file of its labels.
            classes: "all" outputs compete, or those of the classes "present" in the images, as
                for the 200 of ImageNet-A and ImageNet-R.
            real_labels: `real.json` of Beyer et al. 2020, "Are we done with ImageNet?": right
                labels of the 50,000 validation images; those without any do not count.
            confusion_file: CSV file that the confusion matrix is written to.
        """
        check_name(classes, GALLERIES, "classes")
        self._embedder, self._data, self._classes = embedder, data, classes
        self._source = embedder.open(data, names_file)
        if self._source.labels is None or self._source.class_names is None:
            raise UserError(f"{data} has no labels: classification needs them")
        self._names, self._labels = self._source.class_names, self._source.labels
        check_labels(self._labels, len(self._names), data)
        self._real = real_labels and read_real_labels(real_labels, self._source, data)
        self._confusion_file = confusion_file

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics."""
        logits = self._embedder.logits(params, self._source)
        if logits.shape[1] != len(self._names):
            raise UserError(
                f"{self._data} has {len(self._names)} classes, the model has {logits.shape[1]} "
                "outputs"
            )
        if self._classes == "present":
            absent = np.setdiff1d(np.arange(len(self._names)), self._labels)
            logits = logits.copy()
            logits[:, absent] = -np.inf
        yield from metrics.classification(logits, self._labels, metrics.softmax(logits))
        predicted = metrics.predictions(logits)
        if self._real:
            right = [p in real for p, real in zip(predicted, self._real, strict=True) if real]
            yield "real_top1", float(np.mean(right))
        if self._confusion_file and jax.process_index() == 0:
            metrics.write_confusion(self._confusion_file, predicted, self._labels, self._names)


def read_real_labels(path: str, source: Source, data: str) -> list[set[int]]:
    """The right labels of each example, found by the number in its file's name."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(
            f"no file of ReaL labels {path}: it is real.json of "
            "github.com/google-research/reassessed-imagenet"
        )
    real = json.loads(file.read_text())
    found = []
    for i in range(len(source)):
        example = source.annotation(i)
        name = str(example.get("path") or example.get("file_name") or example.get("key"))
        match = _IMAGENET_FILE.search(name)
        if match is None or not 1 <= int(match[1]) <= len(real):
            raise UserError(
                f"{data}: ReaL labels go by ImageNet's file names, as ILSVRC2012_val_00000001; "
                f"example {i} is {name!r}"
            )
        found.append(set(real[int(match[1]) - 1]))
    return found
