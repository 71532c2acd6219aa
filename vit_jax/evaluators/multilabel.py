"""Zero-shot recognition of images with several labels."""

import dataclasses
import reprlib
from collections.abc import Iterator

import numpy as np

from vit_jax.data.sources import Source
from vit_jax.data.sources.classes import sort_names
from vit_jax.errors import UserError, unknown
from vit_jax.evaluators import metrics, prompts
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params


class MultiLabel:
    """Mean average precision of the cosine similarities of images and class prompts.

    Metric: `map`, in [0, 1].
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the evaluator.

        Attributes:
            data: source whose examples have lists of labels.
            field: field of an example that holds its list: names or indices of classes.
            templates: prompt templates, each with one `{}`, or the name of a set of templates, see
                `prompts.templates`.
            class_names: names of the classes, see `prompts.class_names`.
        """

        data: str
        field: str = "labels"
        templates: str | tuple[str, ...] = ("{}",)
        class_names: str | tuple[str, ...] = ""

    def __init__(self, config: Config, embedder: Embedder):
        """Opens the source and reads its labels.

        Args:
            config: keys of the evaluator.
            embedder: computes embeddings of images and texts.

        Raises:
            UserError: no such field, an unknown label, or no label at all.
        """
        self._embedder = embedder
        self._templates = prompts.templates(config.templates)
        self._source = embedder.open_source(config.data)
        lists = _label_lists(self._source, config.field, config.data)
        own_names = self._source.class_names or _own_names(lists)
        self._names = prompts.class_names(config.class_names, own_names)
        self._targets = _targets(lists, own_names, config.data)
        if not self._targets.any():
            raise UserError(f"{config.data}: no example has a label in the field {config.field!r}")

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metric of parameters."""
        images = self._embedder.image_embeddings(params, self._source)
        classes = self._embedder.class_embeddings(params, self._names, self._templates)
        yield "map", metrics.mean_average_precision(images @ classes.T, self._targets)


def _label_lists(source: Source, field: str, spec: str) -> list[list[str | int]]:
    first = source.annotation(0)
    if field not in first:
        raise unknown(field, first, f"field of {spec} with lists of labels,")
    lists = []
    for row in range(len(source)):
        example = source.annotation(row)
        labels = example.get(field)
        if not isinstance(labels, list) or not all(isinstance(x, str | int) for x in labels):
            raise UserError(
                f"{spec}: {field} of {example.get('key', f'example {row}')} is "
                f"{reprlib.repr(labels)}, expected a list of names or indices of classes"
            )
        lists.append(labels)
    return lists


def _own_names(lists: list[list[str | int]]) -> list[str]:
    """Names of the classes that occur; indices are named up to the largest one."""
    found = {label for labels in lists for label in labels}
    names = {label for label in found if isinstance(label, str)}
    if found and not names:
        return [str(i) for i in range(max(int(label) for label in found) + 1)]
    return sort_names(names)


def _targets(lists: list[list[str | int]], names: list[str], spec: str) -> np.ndarray:
    """Converts lists of labels to a table (examples, classes) of bool."""
    columns: dict[str | int, list[int]] = {i: [i] for i in range(len(names))}
    for i, name in enumerate(names):
        columns.setdefault(name, []).append(i)
    targets = np.zeros((len(lists), len(names)), bool)
    for row, labels in zip(targets, lists, strict=True):
        for label in labels:
            if label not in columns:
                raise UserError(f"{spec}: the label {label!r} is not one of its classes")
            row[columns[label]] = True
    return targets
