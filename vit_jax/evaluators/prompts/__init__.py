"""Prompt templates and class names by name; ORIGIN.md tells where they come from."""

import functools
import json
import pathlib
import re
from collections.abc import Sequence

from vit_jax.errors import UserError, lookup

_WNID = re.compile(r"n\d{8}")


def templates(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Prompt templates, each with exactly one `{}`.

    Args:
        spec: a name, as "clip_imagenet" or "pets", or the templates themselves.

    Raises:
        UserError: an unknown name, no template, or one without exactly one slot.
    """
    if isinstance(spec, str):
        if "{}" in spec:
            raise UserError(f"templates={spec!r}: one template is a list of one, as ({spec!r},)")
        spec = lookup(_stored("templates"), spec, "set of prompt templates")
    check_templates(spec)
    return tuple(spec)


def check_templates(templates: Sequence[str]) -> None:
    """Refuses an empty list and a template without exactly one `{}`."""
    if not templates:
        raise UserError("no prompt templates: expected at least one, as '{}'")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"prompt template {template!r}: expected exactly one {{}}")


def class_names(spec: str | Sequence[str], own: Sequence[str]) -> list[str]:
    """A name in plain words for each class of a source.

    Args:
        spec: "" for the source's own names with blanks for underscores, the name of a stored list,
            a text file with one name a line, or the names themselves, in the order of the labels.
        own: the source's class names. Where they are ImageNet's identifiers, as n01440764, the
            names of "imagenet" are found by them, so that a part of the classes in any order will
            do.

    Raises:
        UserError: an unknown list, another number of names than classes, an empty name.
    """
    if not spec:
        names = [name.replace("_", " ") for name in own]
    elif spec == "imagenet" and all(_WNID.fullmatch(name) for name in own):
        known = dict(zip(_stored("class_names")["imagenet_wnids"], _named(spec), strict=True))
        names = [lookup(known, name, "ImageNet class") for name in own]
    else:
        names = _named(spec) if isinstance(spec, str) else list(spec)
    if len(names) != len(own):
        raise UserError(
            f"class_names={spec!r} has {len(names)} names, the data have {len(own)} classes "
            f"({', '.join(own[:3])}, ...): expected one name for each, in the order of the labels"
        )
    if empty := [own[i] or f"number {i}" for i, name in enumerate(names) if not name.strip()]:
        raise UserError(f"classes without a name: {', '.join(empty[:5])}")
    return names


def _named(spec: str) -> list[str]:
    path = pathlib.Path(spec)
    if path.is_file():
        return path.read_text("utf-8").splitlines()
    return list(lookup(_stored("class_names"), spec, "list of class names (or file)"))


@functools.cache
def _stored(what: str) -> dict[str, list[str]]:
    return json.loads(pathlib.Path(__file__).with_name(f"{what}.json").read_text("utf-8"))
