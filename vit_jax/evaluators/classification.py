"""Accuracy of a classifier."""

import dataclasses
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
from vit_jax.evaluators.labels import open_labelled
from vit_jax.evaluators.zeroshot import CANDIDATES
from vit_jax.models.definition import Params

_IMAGENET_FILE = re.compile(r"ILSVRC2012_val_(\d{8})")


class Classification:
    """Accuracy of the model's own classification head.

    Metrics, fractions in [0, 1] of all images: `top1`, `top5`, `mean_per_class_recall`, `ece` of
    the softmax, and with `real_labels` also `real_top1`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: labelled source, as mnist5k:test.
            names_file: file with the labels of a flat folder.
            classes: candidates for the prediction: "all" classes of the source, or those "present"
                in its images, as for the 200 classes of ImageNet-A and ImageNet-R.
            real_labels: file `real.json` with the reassessed labels of the 50,000 validation images
                of ImageNet (Beyer et al. 2020, "Are we done with ImageNet?"). Images without any
                such label are excluded.
            confusion_file: CSV file to which the confusion matrix is written.
        """

        data: str
        names_file: str | None = None
        classes: str = "all"
        real_labels: str | None = None
        confusion_file: str | None = None

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source.

        Args:
            config: keys of the evaluator.
            embedder: computes the logits of images.

        Raises:
            UserError: a source without labels, or reassessed labels that do not match it.
        """
        check_name(config.classes, CANDIDATES, "classes")
        self._config, self._embedder = config, embedder
        self._source = open_labelled(embedder, config.data, config.names_file)
        self._names = self._source.class_names or []
        self._labels = np.asarray(self._source.labels)
        self._real = (
            read_real_labels(config.real_labels, self._source, config.data)
            if config.real_labels
            else None
        )

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        logits = self._embedder.class_logits(params, self._source)
        if logits.shape[1] != len(self._names):
            raise UserError(
                f"{self._config.data} has {len(self._names)} classes, the model has "
                f"{logits.shape[1]} outputs"
            )
        if self._config.classes == "present":
            absent = np.setdiff1d(np.arange(len(self._names)), self._labels)
            logits = logits.copy()
            logits[:, absent] = -np.inf
        yield from metrics.classification(logits, self._labels, metrics.softmax(logits))
        predicted = metrics.predictions(logits)
        if self._real is not None:
            pairs = zip(predicted, self._real, strict=True)
            yield "real_top1", float(np.mean([p in labels for p, labels in pairs if labels]))
        if self._config.confusion_file and jax.process_index() == 0:
            metrics.write_confusion(
                self._config.confusion_file, predicted, self._labels, self._names
            )


def read_real_labels(path: str, source: Source, spec: str) -> list[set[int]]:
    """Reads the reassessed labels of ImageNet's validation images.

    Args:
        path: file `real.json`, one list of labels per image in the order of ImageNet's numbers.
        source: validation images, identified by the number in their file names.
        spec: name of the source in error messages.

    Returns:
        Set of correct labels of each example, which may be empty.

    Raises:
        UserError: no such file, or an example whose name holds no number of ImageNet.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(
            f"no file of ReaL labels {path}: expected real.json of "
            "github.com/google-research/reassessed-imagenet"
        )
    by_number = json.loads(file.read_text())
    labels = []
    for row in range(len(source)):
        example = source.annotation(row)
        name = str(example.get("path") or example.get("file_name") or example.get("key"))
        match = _IMAGENET_FILE.search(name)
        if match is None or not 1 <= int(match[1]) <= len(by_number):
            raise UserError(
                f"{spec}: ReaL labels are assigned by ImageNet's file names, as "
                f"ILSVRC2012_val_00000001; example {row} is {name!r}"
            )
        labels.append(set(by_number[int(match[1]) - 1]))
    return labels
