"""Optimizers, each a dataclass of its keys that builds a chain of optax's transformations."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vit_jax.errors import lookup
from vit_jax.models.definition import DTYPES, ModelDef
from vit_jax.training.schedules import Schedule

WeightDecay = float | Schedule


@runtime_checkable
class Optimizer(Protocol):
    """A dataclass of an optimizer's keys."""

    def build(self, model: ModelDef, weight_decay: WeightDecay) -> optax.GradientTransformation:
        """Builds the transformation of gradients into a direction of descent.

        Args:
            model: its metadata say which parameters are decayed and what their dimensions are.
            weight_decay: factor of the decay, or a function of the step.

        Returns:
            The transformation before the learning rate, which is multiplied by -lr.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019).

    Attributes:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        mu_dtype: dtype of the first moment, float32 or bfloat16.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    mu_dtype: str = "float32"

    def build(self, model: ModelDef, weight_decay: WeightDecay) -> optax.GradientTransformation:
        """Builds the optimizer, see `Optimizer.build`."""
        return optax.chain(_adam(self), _decay(weight_decay, model))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lamb(AdamW):
    """LAMB (You et al. 2020). Its keys are those of `AdamW`."""

    def build(self, model: ModelDef, weight_decay: WeightDecay) -> optax.GradientTransformation:
        """Builds the optimizer, see `Optimizer.build`."""
        return optax.chain(_adam(self), _decay(weight_decay, model), optax.scale_by_trust_ratio())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lars:
    """LARS (You et al. 2017) as in MAE's linear probe: vectors are neither decayed nor scaled.

    Attributes:
        momentum: decay of the momentum, which sums updates before the learning rate.
        mu_dtype: dtype of the momentum, float32 or bfloat16.
    """

    momentum: float = 0.9
    mu_dtype: str = "float32"

    def build(self, model: ModelDef, weight_decay: WeightDecay) -> optax.GradientTransformation:
        """Builds the optimizer, see `Optimizer.build`."""
        ratio = optax.scale_by_trust_ratio(trust_coefficient=0.001)
        return optax.chain(
            _decay(weight_decay, model),
            optax.masked(ratio, model.metadata("decay")),
            optax.trace(self.momentum, accumulator_dtype=_dtype(self.mu_dtype)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion:
    """Lion (Chen et al. 2023).

    Attributes:
        b1: weight of the momentum in the update.
        b2: decay of the momentum.
        mu_dtype: dtype of the momentum, float32 or bfloat16.
    """

    b1: float = 0.9
    b2: float = 0.999
    mu_dtype: str = "float32"

    def build(self, model: ModelDef, weight_decay: WeightDecay) -> optax.GradientTransformation:
        """Builds the optimizer, see `Optimizer.build`."""
        lion = optax.scale_by_lion(self.b1, self.b2, mu_dtype=_dtype(self.mu_dtype))
        return optax.chain(lion, _decay(weight_decay, model))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD:
    """SGD with momentum. Weight decay is a part of the gradient, as in PyTorch.

    Attributes:
        momentum: decay of the momentum.
        nesterov: whether the momentum is Nesterov's.
        mu_dtype: dtype of the momentum, float32 or bfloat16.
    """

    momentum: float = 0.9
    nesterov: bool = False
    mu_dtype: str = "float32"

    def build(self, model: ModelDef, weight_decay: WeightDecay) -> optax.GradientTransformation:
        """Builds the optimizer, see `Optimizer.build`."""
        trace = optax.trace(self.momentum, self.nesterov, accumulator_dtype=_dtype(self.mu_dtype))
        return optax.chain(_decay(weight_decay, model), trace)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Adafactor as in "Scaling Vision Transformers" (Zhai et al. 2022, section 3.4).

    As in big_vision: factored second moments with decay 1 - t^-0.8, momentum without bias
    correction, no scaling by the size of the parameters.

    Attributes:
        momentum: decay of the first moment.
        b2_cap: largest decay of the second moment.
        mu_dtype: dtype of the first moment, float32 or bfloat16.
    """

    momentum: float = 0.9
    b2_cap: float = 0.999
    mu_dtype: str = "float32"

    def build(self, model: ModelDef, weight_decay: WeightDecay) -> optax.GradientTransformation:
        """Builds the optimizer, see `Optimizer.build`."""
        second = optax.scale_by_factored_rms(
            min_dim_size_to_factor=32,
            decay_rate=0.8,
            decay_rate_fn=lambda i, exponent: jnp.minimum(
                self.b2_cap, 1.0 - (i + 1.0) ** -exponent
            ),
        )
        first = optax.ema(self.momentum, debias=False, accumulator_dtype=_dtype(self.mu_dtype))
        return optax.chain(second, first, _decay(weight_decay, model))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Muon (Jordan et al. 2024) for matrices, Adam with Nesterov momentum for the rest.

    Updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training",
    section 2.2), so that learning rate and weight decay carry over. The keys are those of `AdamW`;
    `b1`, `b2` and `eps` apply to parameters that are not matrices.
    """

    def build(self, model: ModelDef, weight_decay: WeightDecay) -> optax.GradientTransformation:
        """Builds the optimizer, see `Optimizer.build`."""
        return contrib.muon(
            -1.0,  # optax descends: this is the direction itself
            weight_decay=weight_decay,
            weight_decay_mask=model.metadata("decay"),
            adam_b1=self.b1,
            adam_b2=self.b2,
            eps=self.eps,
            mu_dtype=_dtype(self.mu_dtype),
            consistent_rms=0.2,
            muon_weight_dimension_numbers=jax.tree.map(
                matrix_dimensions,
                model.metadata("axes"),
                model.metadata("decay"),
                is_leaf=lambda x: isinstance(x, tuple),
            ),
        )


def matrix_dimensions(axes: tuple[str, ...], decay: bool) -> contrib.MuonDimensionNumbers | None:
    """Input and output dimensions of a parameter that is a matrix; None for any other parameter.

    Layers of a stack, and queries, keys and values, are separate matrices.

    Args:
        axes: logical name of each dimension.
        decay: whether the parameter is decayed; only matrices are.
    """
    own = [i for i, name in enumerate(axes) if name not in ("layers", "qkv")]
    if not decay or len(own) < 2:
        return None
    # Into the residual stream, and for convolutions, all dimensions except the last are inputs;
    # out of it, the first is.
    split = len(own) - 1 if axes[own[-1]] == "embed" else 1
    return contrib.MuonDimensionNumbers(tuple(own[:split]), tuple(own[split:]))


def _adam(keys: AdamW) -> optax.GradientTransformation:
    return optax.scale_by_adam(keys.b1, keys.b2, keys.eps, mu_dtype=_dtype(keys.mu_dtype))


def _decay(weight_decay: WeightDecay, model: ModelDef) -> optax.GradientTransformation:
    return optax.add_decayed_weights(weight_decay, model.metadata("decay"))


def _dtype(name: str) -> Any:
    return lookup(DTYPES, name, "config.optim.mu_dtype,")
