"""Accuracy of a classifier."""

import dataclasses
import json
import re
from collections.abc import Iterator

import jax
import numpy as np

from vit_jax.data.sources import Source
from vit_jax.errors import UserError, check_name
from vit_jax.evaluators import metrics, predictions, prompts
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.labels import open_labelled
from vit_jax.evaluators.zeroshot import CANDIDATES
from vit_jax.models.definition import Params
from vit_jax.paths import as_path

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
        if config.confusion_file:  # a URL that cannot be written is refused now
            as_path(config.confusion_file)
        self._source = open_labelled(embedder, config.data, config.names_file)
        self._names = self._source.class_names or []
        self._labels = np.asarray(self._source.labels)
        self._positions = prompts.imagenet_positions(self._names)
        self._real = (
            read_real_labels(config.real_labels, self._source, config.data)
            if config.real_labels
            else None
        )

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of parameters."""
        logits = self._embedder.class_logits(params, self._source)
        names, labels = self._outputs(logits.shape[1])
        if self._config.classes == "present":
            absent = np.setdiff1d(np.arange(len(names)), labels)
            logits = logits.copy()
            logits[:, absent] = -np.inf
        probabilities = metrics.softmax(logits)
        yield from metrics.classification(logits, labels, probabilities)
        self._found = predictions.top_classes(logits, probabilities, labels), names
        predicted = metrics.predictions(logits)
        if self._real is not None:
            pairs = zip(predicted, self._real, strict=True)
            yield "real_top1", float(np.mean([p in labels for p, labels in pairs if labels]))
        if self._config.confusion_file and jax.process_index() == 0:
            metrics.write_confusion(self._config.confusion_file, predicted, labels, names)

    def predicted(self, limit: int) -> predictions.Arrays:
        """Returns what the last `run` predicted, see `predictions.classification`."""
        max_pixels = self._embedder.max_image_pixels
        return predictions.classification(
            *self._found, self._source, limit=limit, max_pixels=max_pixels
        )

    def _outputs(self, count: int) -> tuple[list[str], np.ndarray]:
        """Names of the model's outputs, and the labels as indices of them."""
        if count == len(self._names):
            return self._names, self._labels
        wnids = prompts.imagenet_wnids()
        if self._positions is not None and count == len(wnids):  # some of ImageNet's classes
            return wnids, np.asarray(self._positions)[self._labels]
        raise UserError(
            f"{self._config.data} has {len(self._names)} classes, the model has {count} outputs"
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
    file = as_path(path)
    if not file.is_file():
        raise UserError(
            f"no file of ReaL labels {path}: expected real.json of "
            "github.com/google-research/reassessed-imagenet"
        )
    try:
        by_number = [{int(label) for label in labels} for labels in json.loads(file.read_bytes())]
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected a JSON list of lists of labels: {error}") from error
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
        labels.append(by_number[int(match[1]) - 1])
    return labels
