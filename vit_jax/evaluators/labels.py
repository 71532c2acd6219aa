"""Labelled sources, and checks that their labels fit together."""

import numpy as np
from jaxtyping import Int

from vit_jax.data.sources import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder


def open_labelled(embedder: Embedder, spec: str, names_file: str | None = None) -> Source:
    """Opens a source with a label for every example and a name for every class.

    Args:
        embedder: opens sources, each one once.
        spec: source, see `vit_jax.data.sources`.
        names_file: file with the labels of a flat folder.

    Raises:
        UserError: the source has no labels, or a label is not the index of a class.
    """
    source = embedder.open_source(spec, names_file)
    if source.labels is None or source.class_names is None:
        raise UserError(f"{spec} has no labels: expected a labelled source")
    check_labels(source.labels, len(source.class_names), spec)
    return source


def open_train_and_test(embedder: Embedder, train: str, test: str) -> tuple[Source, Source]:
    """Opens two labelled sources with the same classes.

    Args:
        embedder: opens sources, each one once.
        train: source of training examples.
        test: source of test examples; each class in it has a training example.
    """
    sources = open_labelled(embedder, train), open_labelled(embedder, test)
    check_same_classes(sources[0], train, sources[1], test)
    return sources


def check_labels(labels: Int[np.ndarray, " examples"], num_classes: int, spec: str) -> None:
    """Checks that labels are indices of classes.

    Args:
        labels: label of each example.
        num_classes: number of classes.
        spec: name of the source in error messages.

    Raises:
        UserError: a label is negative or too large, as in a source that lacks some labels.
    """
    if wrong := sorted(set(labels[(labels < 0) | (labels >= num_classes)].tolist())):
        raise UserError(
            f"{spec} has the labels {wrong[:5]}: expected labels from 0 to {num_classes - 1}, "
            f"for {num_classes} classes"
        )


def check_same_classes(train: Source, train_spec: str, other: Source, other_spec: str) -> None:
    """Checks that the labels of two sources have the same meaning.

    Args:
        train: source of training examples.
        train_spec: name of `train` in error messages.
        other: source of validation or test examples.
        other_spec: name of `other` in error messages.

    Raises:
        UserError: the classes differ, or `other` has a class without a training example.
    """
    names, others = train.class_names or [], other.class_names or []
    # Labels that are numbers are named up to the largest one of each source.
    for label, pair in enumerate(zip(names, others, strict=False)):
        if pair[0] != pair[1]:
            raise UserError(
                f"{train_spec} and {other_spec} have different classes: label {label} is "
                f"{pair[0]!r} and {pair[1]!r}; give both the same file of classes, as ?classes=FILE"
            )
    untrained = np.setdiff1d(np.asarray(other.labels), np.asarray(train.labels))
    if len(untrained):
        raise UserError(
            f"{other_spec} has classes without an example in {train_spec}: "
            f"{', '.join(others[i] for i in untrained[:5])}"
        )
