"""Frozen parameters, chosen by regular expressions of their paths (`config.optim.freeze`).

LiT (Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning") freezes the image
tower by ("image/.*",); a linear probe freezes all parameters except the head by ("(?!head).*",).
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.errors import UserError, unknown
from vit_jax.models.definition import ModelDef, Params


def frozen_mask(patterns: Sequence[str], model: ModelDef) -> Any:
    """Mask of the frozen parameters.

    Args:
        patterns: regular expressions; a parameter is frozen if one of them matches its whole path,
            as "image/transformer/blocks/mlp/in/kernel".
        model: model whose parameters the patterns match.

    Returns:
        Tree of bool like the parameters, or None without patterns.

    Raises:
        UserError: an invalid pattern, a pattern that matches nothing, or patterns that leave
            nothing to train.
    """
    if not patterns:
        return None
    paths = list(flatten_dict(model.shapes(), sep="/"))
    found: set[str] = set()
    for pattern in patterns:
        found |= match_paths(pattern, paths, "config.optim.freeze")
    if len(found) == len(paths):
        raise UserError(f"config.optim.freeze={tuple(patterns)} leaves nothing to train")
    return unflatten_dict({path: path in found for path in paths}, sep="/")


def match_paths(pattern: str, paths: Iterable[str], key: str) -> set[str]:
    """Paths that a regular expression matches as a whole.

    Args:
        pattern: regular expression.
        paths: parameter paths.
        key: config key of the pattern, for messages.

    Raises:
        UserError: an invalid pattern, or one that matches nothing.
    """
    paths = list(paths)
    try:
        found = {path for path in paths if re.fullmatch(pattern, path)}
    except re.error as error:
        raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from None
    if not found:
        raise unknown(pattern, paths, f"parameter in {key}, no path matches")
    return found


def stop_frozen(params: Params, frozen: Any) -> Params:
    """Stops gradients at the frozen parameters, so that none are computed for them.

    Args:
        params: parameters.
        frozen: tree of bool, or None.
    """
    if frozen is None:
        return params
    return jax.tree.map(lambda f, x: jax.lax.stop_gradient(x) if f else x, frozen, params)


def keep_frozen(params: Params, before: Params, frozen: Any) -> Params:
    """Restores the frozen parameters, running statistics included.

    Args:
        params: parameters after a step.
        before: parameters before the step.
        frozen: tree of bool, or None.
    """
    if frozen is None:
        return params
    return jax.tree.map(lambda f, new, old: old if f else new, frozen, params, before)
