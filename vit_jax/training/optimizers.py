"""Optimizers from `config.optim`, each a chain of optax's parts.

clipping -> direction of the optimizer, decay included -> layer-wise factors -> learning rate
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vit_jax.errors import UserError, lookup
from vit_jax.models.definition import DTYPES, ModelDef
from vit_jax.training.schedules import Schedule

# What turns gradients into a direction, before the learning rate.
Direction = Callable[[Any, ModelDef], optax.GradientTransformation]


def make_optimizer(
    config: Any, schedule: Schedule, model: ModelDef, frozen: Any = None
) -> optax.GradientTransformation:
    """The optimizer of `config.optim`.

    Args:
        config: `config.optim`.
        schedule: step -> learning rate.
        model: says which parameters weight decay applies to, which dimensions a matrix has, and how
            many layers lie above a parameter.
        frozen: tree of bool; frozen parameters have neither optimizer state nor updates. None for
            none.
    """
    direction = lookup(OPTIMIZERS, config.name, "config.optim.name,")(config, model)
    parts = [optax.clip_by_global_norm(config.grad_clip_norm)] if config.grad_clip_norm else []
    parts.append(direction)
    if config.layer_decay != 1:
        parts.append(scale_by_layer(config.layer_decay, model))
    chain = optax.chain(*parts, optax.scale_by_learning_rate(schedule))
    if frozen is None:
        return chain
    labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
    return optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def _adamw(config: Any, model: ModelDef) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019)."""
    return optax.chain(_adam(config), _decay(config, model))


def _lamb(config: Any, model: ModelDef) -> optax.GradientTransformation:
    """LAMB (You et al. 2020)."""
    return optax.chain(_adam(config), _decay(config, model), optax.scale_by_trust_ratio())


def _lars(config: Any, model: ModelDef) -> optax.GradientTransformation:
    """LARS (You et al. 2017) as MAE's linear probe has it: vectors are neither decayed nor scaled.

    The momentum is of updates before the learning rate.
    """
    ratio = optax.scale_by_trust_ratio(trust_coefficient=0.001)
    return optax.chain(
        _decay(config, model),
        optax.masked(ratio, model.metadata("decay")),
        optax.trace(config.b1, accumulator_dtype=_mu_dtype(config)),
    )


def _lion(config: Any, model: ModelDef) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023)."""
    lion = optax.scale_by_lion(config.b1, config.b2, mu_dtype=_mu_dtype(config))
    return optax.chain(lion, _decay(config, model))


def _sgd(config: Any, model: ModelDef) -> optax.GradientTransformation:
    """SGD with momentum `b1`, the decay as a part of the gradient (torch's)."""
    momentum = optax.trace(config.b1, config.nesterov, accumulator_dtype=_mu_dtype(config))
    return optax.chain(_decay(config, model), momentum)


def _adafactor(config: Any, model: ModelDef) -> optax.GradientTransformation:
    """Adafactor as in "Scaling Vision Transformers" (Zhai et al. 2022, section 3.4).

    Of big_vision: factored second moments with decay 1 - t^-0.8, at most `b2`; momentum `b1`, not
    debiased; no scaling by the size of the parameters.
    """
    second = optax.scale_by_factored_rms(
        min_dim_size_to_factor=32,
        decay_rate=0.8,
        decay_rate_fn=lambda i, exponent: jnp.minimum(config.b2, 1.0 - (i + 1.0) ** -exponent),
    )
    first = optax.ema(config.b1, debias=False, accumulator_dtype=_mu_dtype(config))
    return optax.chain(second, first, _decay(config, model))


def _muon(config: Any, model: ModelDef) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for matrices, Adam with Nesterov momentum for the rest.

    Updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training",
    section 2.2), so that learning rate and decay carry over.
    """
    return contrib.muon(
        -1.0,  # the direction itself: optax descends
        weight_decay=config.weight_decay,
        weight_decay_mask=model.metadata("decay"),
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        mu_dtype=_mu_dtype(config),
        consistent_rms=0.2,
        muon_weight_dimension_numbers=jax.tree.map(
            matrix_dimensions,
            model.metadata("axes"),
            model.metadata("decay"),
            is_leaf=lambda x: isinstance(x, tuple),
        ),
    )


OPTIMIZERS: dict[str, Direction] = {
    "adamw": _adamw,
    "muon": _muon,
    "lamb": _lamb,
    "lars": _lars,
    "lion": _lion,
    "sgd": _sgd,
    "adafactor": _adafactor,
}


def _adam(config: Any) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=_mu_dtype(config))


def _decay(config: Any, model: ModelDef) -> optax.GradientTransformation:
    return optax.add_decayed_weights(config.weight_decay, model.metadata("decay"))


def _mu_dtype(config: Any) -> Any:
    return lookup(DTYPES, config.mu_dtype, "config.optim.mu_dtype,")


def scale_by_layer(decay: float, model: ModelDef) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay (Clark et al. 2020, "ELECTRA"; Bao et al. 2022, "BEiT").

    Args:
        decay: factor a layer, in (0, 1]; the layers above a parameter count.
        model: says how many there are.
    """
    if not 0 < decay <= 1:
        raise UserError(f"config.optim.layer_decay={decay}: expected a number in (0, 1]")

    def scale(updates: Any) -> Any:
        # Leading with the updates: they may hold masked nodes in place of frozen parameters.
        return jax.tree.map(
            lambda above, update: jax.tree.map(lambda u: u * decay**above, update),
            model.layers_above(),
            updates,
        )

    return optax.stateless(lambda updates, params: scale(updates))


def matrix_dimensions(axes: tuple[str, ...], decay: bool) -> contrib.MuonDimensionNumbers | None:
    """Which dimensions of a parameter are a matrix's inputs and outputs; None for no matrix.

    Layers of a stack, and queries, keys and values, are matrices of their own.

    Args:
        axes: logical name of each dimension.
        decay: whether weight decay applies, as it does to matrices alone.
    """
    own = [i for i, name in enumerate(axes) if name not in ("layers", "qkv")]
    if not decay or len(own) < 2:
        return None
    # Into the residual stream, as convolutions: all but the last are inputs. Out of it: the first.
    split = len(own) - 1 if axes[own[-1]] == "embed" else 1
    return contrib.MuonDimensionNumbers(tuple(own[:split]), tuple(own[split:]))


def project(params: Any, bounds: Any) -> Any:
    """Clips each parameter to the interval its model declares, None for none."""
    return jax.tree.map(
        lambda bound, p: p if bound is None else jnp.clip(p, *bound),
        bounds,
        params,
        is_leaf=lambda x: x is None or isinstance(x, tuple),
    )
