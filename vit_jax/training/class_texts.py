"""Classes of the training source as texts, for learned prompts."""

from typing import Any

from vit_jax.data.sources import Source
from vit_jax.evaluators import prompts


def class_names(source: Source) -> list[str] | None:
    """Names of the classes of a source, as evaluators name them by default.

    Args:
        source: training source.

    Returns:
        One name per class; None for a source without classes.
    """
    own = source.class_names
    return None if own is None else prompts.class_names("", own)


def class_texts(source: Source, keys: Any) -> list[str]:
    """Texts of the classes of a source.

    Args:
        source: training source.
        keys: parsed keys of the objective, whose `template` applies where it has one.

    Returns:
        One text per class; none for a source without classes.
    """
    template = getattr(keys, "template", "{}")
    return [template.format(name) for name in class_names(source) or ()]
