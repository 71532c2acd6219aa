"""Prompt templates and class names by name. ORIGIN.md lists their sources."""

import functools
import json
import logging
import pathlib
import re
from collections.abc import Sequence

from vit_jax.data.examples import check_templates
from vit_jax.data.sources.classes import read_lines
from vit_jax.data.sources.files import file_system, is_file
from vit_jax.errors import UserError, lookup, unknown
from vit_jax.evaluators.metrics import text_content

logger = logging.getLogger(__name__)

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

    Names are matched by name where the classes of the source are identifiers of ImageNet, as
    n01440764, or where all of them are in the list. Otherwise they are matched by position, which
    is logged where no name confirms it.

    Args:
        spec: name of a stored list, path or URL of a text file with one name per line, or the names
            themselves, in the order of the labels. "": the names of the source, with spaces for
            underscores, or those of ImageNet for its identifiers.
        own: class names of the source.

    Returns:
        One name per class.

    Raises:
        UserError: an unknown list, another number of names than of classes, an empty name, or names
            that are in the list at other positions.
    """
    positions = imagenet_positions(own)
    if spec in ("", "imagenet") and positions is None and all(map(_WNID.fullmatch, own)):
        other = next(name for name in own if name not in imagenet_wnids())
        raise UserError(
            f"{other} is not one of ImageNet's 1,000 classes: name the classes, as class_names=FILE"
        )
    if not spec and positions is None:
        names = [name.replace("_", " ") for name in own]
    else:
        given = _named(spec or "imagenet") if isinstance(spec, str) else list(spec)
        names = _matched(given, own, positions, str(spec))
    if empty := [own[i] or f"number {i}" for i, name in enumerate(names) if not name.strip()]:
        raise UserError(f"classes without a name: {', '.join(empty[:5])}")
    return names


def imagenet_positions(own: Sequence[str]) -> list[int] | None:
    """Labels of ImageNet for its identifiers; None where any name is none of them.

    Args:
        own: class names.
    """
    known = {name: i for i, name in enumerate(imagenet_wnids())}
    return [known[name] for name in own] if own and all(name in known for name in own) else None


def imagenet_wnids() -> list[str]:
    """Identifiers of ImageNet's classes in the order of its labels."""
    return _stored("class_names")["imagenet_wnids"]


def _matched(
    given: list[str], own: Sequence[str], positions: list[int] | None, spec: str
) -> list[str]:
    """One name for each class of the source."""
    if positions is not None and len(given) == len(imagenet_wnids()):
        return [given[i] for i in positions]
    found: dict[str, list[int]] = {}
    for i, name in enumerate(given):
        found.setdefault(_plain(name), []).append(i)
    places = [found.get(_plain(name), []) for name in own]
    moved = [i for i, place in enumerate(places) if place and i not in place]
    if (moved or len(given) != len(own)) and all(len(place) == 1 for place in places):
        logger.info("class_names=%s: classes are matched by name", spec)
        return [given[place[0]] for place in places]
    if len(given) != len(own):
        raise UserError(
            f"class_names={spec} has {len(given)} names, the data has {len(own)} classes "
            f"({', '.join(own[:3])}, ...): expected one name per class, in the order of the labels"
        )
    if moved:
        raise UserError(
            f"class_names={spec}: the class {own[moved[0]]!r} of the data has label {moved[0]}, "
            f"but is number {places[moved[0]][0]} of the names: expected the order of the labels"
        )
    if not any(places):
        last = len(own) - 1
        logger.info(
            "class_names=%s: classes are matched by position, as %r = %r and %r = %r",
            spec, own[0], given[0], own[last], given[last],
        )  # fmt: skip
    return given


def _plain(name: str) -> str:
    return text_content(name.replace("_", " "))


def _named(spec: str) -> list[str]:
    if spec in (stored := _stored("class_names")):
        return list(stored[spec])
    fs, path = file_system(spec)
    if not is_file(fs, path):
        raise unknown(spec, stored, "list of class names (or file)")
    return read_lines(spec)


@functools.cache
def _stored(what: str) -> dict[str, list[str]]:
    return json.loads(pathlib.Path(__file__).with_name(f"{what}.json").read_text("utf-8"))
