"""The interface of an evaluation."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from vit_jax.models.definition import Params


@runtime_checkable
class Evaluator(Protocol):
    """An evaluation of parameters.

    A class with a nested frozen dataclass `Config`, whose fields are the keys of a block of
    `config.evals`, and the constructor

        def __init__(self, config: Config, embedder: Embedder): ...

    which opens the data and raises `UserError` for a block that cannot work. A class with the
    attribute `needs_objective = True` is constructed with the objective of the run as a third
    argument. Register the class in `vit_jax.evaluators.EVALUATORS`, or name it in a config as
    `package.module:Name`. A further method `predicted` makes its predictions part of the run and of
    its report, see `vit_jax.evaluators.predictions`.
    """

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Evaluates parameters.

        Every process of a run calls this method, and all of them get the same values.

        Args:
            params: parameters of the model, a nested dict of arrays on the devices.

        Yields:
            Name and value of each metric.
        """
        ...
