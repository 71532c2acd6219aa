"""Zero-shot recognition where an image has several labels."""

from collections.abc import Iterator, Sequence

import numpy as np

from vit_jax.errors import UserError, unknown
from vit_jax.evaluators import metrics, prompts
from vit_jax.evaluators.embedding import Embedder
from vit_jax.models.definition import Params


class MultiLabel:
    """Mean average precision of cosine similarities. Metric: `map`, in [0, 1]."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        data: str,
        field: str = "labels",
        templates: str | Sequence[str] = ("{}",),
        class_names: str | Sequence[str] = "",
    ):
        """Opens the source and reads its labels.

        Args:
            embedder: of images and texts.
            data: source whose examples have lists of labels.
            field: of an example that holds its list: names, or numbers of the source's classes.
            templates: prompts with one `{}`, or a name from `prompts.templates`.
            class_names: words for the classes, see `prompts.class_names`.
        """
        self._embedder, self._templates = embedder, prompts.templates(templates)
        self._source = embedder.open(data)
        first = self._source.annotation(0)
        if field not in first:
            raise unknown(field, first, f"field of {data} with lists of labels,")
        found = [self._source.annotation(i)[field] for i in range(len(self._source))]
        own = self._source.class_names or sorted({str(label) for each in found for label in each})
        self._names = prompts.class_names(class_names, own)
        column = {name: i for i, name in enumerate(own)} | {i: i for i in range(len(own))}
        self._right = np.zeros((len(found), len(own)), bool)
        for row, each in zip(self._right, found, strict=True):
            for label in each:
                if label not in column:
                    raise UserError(f"{data}: the label {label!r} is none of its classes")
                row[column[label]] = True
        if not self._right.any():
            raise UserError(f"{data}: no example has a label in the field {field!r}")

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields map."""
        images = self._embedder.images(params, self._source)
        classes = self._embedder.prompts(params, self._names, self._templates)
        yield "map", metrics.mean_average_precision(images @ classes.T, self._right)
