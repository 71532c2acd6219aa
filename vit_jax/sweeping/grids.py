"""Variants by combinations of values and by seeds."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Variants = dict[str, dict[str, Any]]


def grid(keys: Mapping[str, Sequence[Any]]) -> Variants:
    """All combinations of values.

    Args:
        keys: values of each config key.

    Returns:
        Name -> key -> value; a name is made of the last parts of the keys and the values.

    Example:
        >>> grid({"optim.lr": (0.1, 0.2), "batch_size": (8,)})["lr=0.2,batch_size=8"]
        {'optim.lr': 0.2, 'batch_size': 8}
    """
    rows = [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]
    return {",".join(f"{_last(key)}={row[key]}" for key in keys): row for row in rows}


def seeds(variants: Variants, count: int) -> Variants:
    """Each variant with the seeds 0, 1, ...

    Args:
        variants: name -> key -> value.
        count: number of seeds.

    Example:
        >>> seeds({"small": {"batch_size": 8}}, 2)["small,seed=1"]
        {'batch_size': 8, 'seed': 1}
    """
    return {
        f"{name},seed={seed}": {**changes, "seed": seed}
        for name, changes in variants.items()
        for seed in range(count)
    }


def _last(key: str) -> str:
    return key.rpartition(".")[2]
