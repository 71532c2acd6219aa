"""Prompt templates and class names by name. ORIGIN.md lists their sources."""

import functools
import json
import pathlib
import re
from collections.abc import Sequence

from vit_jax.data.examples import check_templates
from vit_jax.errors import UserError, lookup

_WNID = re.compile(r"n\d{8}")


def templates(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Resolves a set of prompt templates, each with exactly one `{}`.

    Args:
        spec: name of a set, as "clip_imagenet" or "pets", or the templates themselves.

    Raises:
        UserError: an unknown name, no template, or a template without exactly one `{}`.
    """
    if isinstance(spec, str):
        if "{}" in spec:
            raise UserError(f"templates={spec!r}: expected a list of templates, as ({spec!r},)")
        spec = lookup(_stored("templates"), spec, "set of prompt templates")
    check_templates(spec)
    return tuple(spec)


def class_names(spec: str | Sequence[str], own: Sequence[str]) -> list[str]:
    """Resolves the names of a source's classes, as used in prompts.

    Args:
        spec: name of a stored list, path of a text file with one name per line, or the names
            themselves, in the order of the labels. "": the names of the source, with spaces for
            underscores.
        own: class names of the source. If they are identifiers of ImageNet, as n01440764, the list
            "imagenet" is indexed by them, so that subsets of the classes in any order work.

    Returns:
        One name per class.

    Raises:
        UserError: an unknown list, another number of names than of classes, or an empty name.
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
            f"class_names={spec!r} has {len(names)} names, the data has {len(own)} classes "
            f"({', '.join(own[:3])}, ...): expected one name per class, in the order of the labels"
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
