"""Averages of the weights of several models: WiSE-FT and model soups.

Sums are in float64, so that neither the order nor the number of the models matters.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

logger = logging.getLogger(__name__)

# Nested dict of arrays on the host or on a device.
Params = Any


def interpolate(first: Params, second: Params, alpha: float) -> Params:
    """Weights on the line between two models (Wortsman et al. 2022, "WiSE-FT", section 3).

    Args:
        first: parameters before fine-tuning.
        second: parameters after it.
        alpha: 0 for the first, 1 for the second, to the last bit.

    Returns:
        (1 - alpha) * first + alpha * second, NumPy arrays of the dtypes of `first`.
    """

    def line(x: Any, y: Any) -> np.ndarray:
        x, y = np.asarray(x), np.asarray(y)
        mean = (1 - alpha) * x.astype(np.float64) + alpha * y.astype(np.float64)
        return np.asarray(mean, x.dtype)

    return jax.tree.map(line, first, second)


class Sum:
    """Sum of the parameters of models, in float64.

    Attributes:
        count: number of models.
    """

    def __init__(self, params: Params):
        """Starts with one model."""
        self.count = 1
        self._dtypes = jax.tree.map(lambda x: np.dtype(x.dtype), params)
        self._total = jax.tree.map(lambda x: np.asarray(x).astype(np.float64), params)

    def plus(self, params: Params) -> "Sum":
        """The sum with another model."""
        found = object.__new__(Sum)
        found.count, found._dtypes = self.count + 1, self._dtypes
        found._total = jax.tree.map(lambda total, x: total + np.asarray(x), self._total, params)
        return found

    @property
    def mean(self) -> Params:
        """Mean of the models, NumPy arrays of the dtypes of the first one."""
        return jax.tree.map(
            lambda total, dtype: np.asarray(total / self.count, dtype), self._total, self._dtypes
        )


def uniform_soup(count: int, load: Callable[[int], Params]) -> Params:
    """Mean of all models (Wortsman et al. 2022, "Model soups", section 2). One is held at a time.

    Args:
        count: number of models, at least 1.
        load: reads the parameters of a model.
    """
    total = Sum(load(0))
    for i in range(1, count):
        total = total.plus(load(i))
    return total.mean


@dataclasses.dataclass(frozen=True)
class Soup:
    """Result of `greedy_soup`.

    Attributes:
        params: mean of the ingredients.
        score: score of the mean on the held-out data.
        members: ingredients, in the order in which they were added.
    """

    params: Params
    score: float
    members: list[int]


def greedy_soup(
    scores: Sequence[float],
    load: Callable[[int], Params],
    score: Callable[[Params], float],
    names: Sequence[str],
) -> Soup:
    """Adds models, the best first, as long as they help (Wortsman et al. 2022, recipe 1).

    A model stays in the soup if the mean with it scores at least as high as the mean without it.

    Args:
        scores: score of each model on held-out data; of equal ones the first model comes first.
        load: reads the parameters of a model.
        score: score of parameters on the same data.
        names: name of each model, for messages.
    """
    first, *others = np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist()
    members, best, total = [first], scores[first], Sum(load(first))
    for i in others:
        tried = total.plus(load(i))
        found = score(tried.mean)
        verb = "is added" if found >= best else "stays out"
        logger.info("%s %s: %.6g with it, %.6g without it.", names[i], verb, found, best)
        if found >= best:
            members, best, total = [*members, i], found, tried
    return Soup(total.mean, best, members)
