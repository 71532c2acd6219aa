"""Parameters that stay as they are, chosen by patterns of their paths (`config.optim.freeze`).

LiT (Zhai et al. 2022, "Zero-Shot Transfer with Locked-image text Tuning") locks the image tower by
("image/.*",), a linear probe all but the head by ("(?!head).*",).
"""

import re
from collections.abc import Sequence
from typing import Any

import jax

from vit_jax.errors import UserError, unknown
from vit_jax.models.definition import ModelDef, Params


def frozen_mask(patterns: Sequence[str], model: ModelDef) -> Any:
    """Which parameters are frozen: a tree of bool like the parameters, or None for none.

    Args:
        patterns: regular expressions; a parameter is frozen if one of them matches its whole path,
            as "image/transformer/blocks/mlp/in/kernel".
        model: whose parameters they are.

    Raises:
        UserError: a pattern that is no regular expression or matches nothing, or patterns that
            leave nothing to train.
    """
    if not patterns:
        return None
    flat, structure = jax.tree_util.tree_flatten_with_path(model.shapes())
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    mask = [False] * len(paths)
    for pattern in patterns:
        found = match_paths(pattern, paths, "config.optim.freeze")
        mask = [old or path in found for old, path in zip(mask, paths, strict=True)]
    if all(mask):
        raise UserError(f"config.optim.freeze={tuple(patterns)} leaves nothing to train")
    return jax.tree.unflatten(structure, mask)


def match_paths(pattern: str, paths: Sequence[str], key: str) -> set[str]:
    """The paths that a regular expression matches as a whole; at least one."""
    try:
        found = {path for path in paths if re.fullmatch(pattern, path)}
    except re.error as error:
        raise UserError(f"{key}: {pattern!r} is no regular expression: {error}") from None
    if not found:
        raise unknown(pattern, paths, f"parameter in {key}, no path matches")
    return found


def stop_frozen(params: Params, frozen: Any) -> Params:
    """Parameters of which the frozen ones have no gradient, so that none is computed."""
    if frozen is None:
        return params
    return jax.tree.map(lambda f, x: jax.lax.stop_gradient(x) if f else x, frozen, params)


def keep_frozen(params: Params, before: Params, frozen: Any) -> Params:
    """New parameters with the frozen ones, running statistics included, as they were."""
    if frozen is None:
        return params
    return jax.tree.map(lambda f, new, old: old if f else new, frozen, params, before)
