"""Optimizer and learning-rate schedule from the block `config.optim`.

The keys of the block are those of three dataclasses: `OptimConfig`, which every optimizer shares,
the optimizer that `name` selects and the decay that `schedule` selects. Optimizers are those of
`OPTIMIZERS`, any of optax by its name there (as "adabelief"), or `package.module:function`.

    gradient clipping -> optimizer, weight decay included -> factors of parameters -> learning rate
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.components import Registry, config_class, parse
from vit_jax.errors import UserError, check_name, unknown, unknown_key
from vit_jax.models.definition import ModelDef
from vit_jax.training import optax_functions
from vit_jax.training.freezing import frozen_mask, match_paths
from vit_jax.training.lora import Lora
from vit_jax.training.schedules import (
    EMA_SCHEDULES,
    SCHEDULES,
    Decay,
    Schedule,
    warmup_decay_cooldown,
)

PATH = "config.optim"

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": "vit_jax.training.optimizer_zoo:AdamW",
        "muon": "vit_jax.training.optimizer_zoo:Muon",
        "lamb": "vit_jax.training.optimizer_zoo:Lamb",
        "lars": "vit_jax.training.optimizer_zoo:Lars",
        "lion": "vit_jax.training.optimizer_zoo:Lion",
        "sgd": "vit_jax.training.optimizer_zoo:SGD",
        "adafactor": "vit_jax.training.optimizer_zoo:Adafactor",
    },
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Keys of `config.optim` that all optimizers and schedules share.

    Attributes:
        name: optimizer: a key of `OPTIMIZERS`, a name in optax, or `package.module:function`.
        lr: peak learning rate.
        schedule: decay after the warm-up: cosine, linear (both to `min_lr`), rsqrt, constant, or
            `package.module:Name`.
        min_lr: lower bound of the decay.
        warmup_steps: length of the linear warm-up from 0. At most one unit of a length is set.
        warmup_epochs: length of the warm-up in epochs.
        warmup_examples: length of the warm-up in examples.
        warmup_percent: length of the warm-up in percent of the run.
        cooldown_steps: last steps of the run, in which the schedule is multiplied by a line to 0.
        cooldown_epochs: length of the cooldown in epochs.
        cooldown_examples: length of the cooldown in examples.
        cooldown_percent: length of the cooldown in percent of the run.
        weight_decay: decay of matrices, multiplied by the learning rate. It is decoupled from the
            gradient, except in sgd and lars, where it is added to the gradient.
        final_weight_decay: weight decay at the end of the run, reached along half a cosine (DINO);
            None: it is constant.
        grad_clip_norm: largest global norm of the gradient; 0: no clipping.
        layer_decay: layer-wise learning rates lr * layer_decay^(layers above), in (0, 1].
        lr_factors: pairs of a regular expression of parameter paths and a factor of the learning
            rate, as (("text/.*", 0.1),). All factors that match a path are multiplied.
        freeze: regular expressions of parameter paths, as ("image/.*",), that are not trained.
        ema_decay: decay of the moving average of the parameters, which is then evaluated; 0: none.
        lora_rank: rank of the adapters of LoRA (Hu et al. 2021), see `lora`; 0: no adapters. With
            adapters, only they and `lora_full` are trained.
        lora_alpha: adapters are scaled by lora_alpha / lora_rank.
        lora_paths: regular expressions of the paths of adapted matrices, as
            (".*/attention/.*kernel",).
        lora_full: regular expressions of paths of parameters that are trained without adapters, as
            ("head/.*",).
        ema_schedule: "warmup" (smaller in the first steps) or "cosine" (to 1 at the end of the run,
            for teachers), see `schedules.ema_schedule`.
    """

    name: str = "adamw"
    lr: float = 1e-3
    schedule: str = "cosine"
    min_lr: float = 0.0
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    warmup_examples: int = 0
    warmup_percent: float = 0.0
    cooldown_steps: int = 0
    cooldown_epochs: float = 0.0
    cooldown_examples: int = 0
    cooldown_percent: float = 0.0
    weight_decay: float = 0.0
    final_weight_decay: float | None = None
    grad_clip_norm: float = 0.0
    layer_decay: float = 1.0
    lr_factors: Sequence[tuple[str, float]] = ()
    freeze: Sequence[str] = ()
    ema_decay: float = 0.0
    lora_rank: int = 0
    lora_alpha: float = 1.0
    lora_paths: Sequence[str] = ()
    lora_full: Sequence[str] = ()
    ema_schedule: str = "warmup"

    def __post_init__(self) -> None:
        check_name(self.ema_schedule, EMA_SCHEDULES, f"{PATH}.ema_schedule,")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"{PATH}.ema_decay={self.ema_decay}: expected a number in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Optim:
    """The parsed block `config.optim`.

    Attributes:
        shared: keys that do not depend on optimizer and schedule.
        optimizer: a dataclass of the optimizer's keys, see `optimizer_zoo.Optimizer`, or an
            `optax_functions.OptaxFunction`.
        decay: schedule between warm-up and cooldown.
    """

    shared: OptimConfig
    optimizer: Any
    decay: Decay

    def as_block(self) -> dict[str, Any]:
        """All keys with their values, as `parse_optim` takes them."""
        parts: tuple[Any, ...] = (self.optimizer, self.decay, self.shared)
        return {
            field.name: getattr(part, field.name)
            for part in parts
            for field in dataclasses.fields(part)
        }


def parse_optim(block: Mapping[str, Any]) -> Optim:
    """Parses `config.optim`.

    Args:
        block: keys of `OptimConfig`, of the optimizer and of the schedule.

    Raises:
        UserError: an unknown optimizer or schedule, a key that does not apply to them, or a value
            of another type.
    """
    fields = dict(block)
    names = {part: fields.get(part, getattr(OptimConfig, part)) for part in ("name", "schedule")}
    optimizer = _resolve_optimizer(names["name"])
    decay = config_class(SCHEDULES.resolve(names["schedule"], f"{PATH}.schedule"))
    parts: dict[type, dict[str, Any]] = {OptimConfig: {}, optimizer: {}, decay: {}}
    for key, value in fields.items():
        owner = next((part for part in parts if key in _keys(part)), None)
        if owner is None:
            raise _inapplicable(key, names, optimizer, decay)
        parts[owner][key] = value
    shared, *own = (parse(part, values, PATH) for part, values in parts.items())
    return Optim(shared, *own)


def make_schedule(
    optim: Optim, *, warmup_steps: int, total_steps: int, cooldown_steps: int = 0
) -> Schedule:
    """Learning rate by step.

    Args:
        optim: parsed block.
        warmup_steps: length of the warm-up.
        total_steps: length of the run, warm-up and cooldown included.
        cooldown_steps: length of the cooldown.

    Raises:
        UserError: lengths that do not fit the run, or `min_lr` out of its range.
    """
    return warmup_decay_cooldown(
        optim.decay,
        lr=optim.shared.lr,
        min_lr=optim.shared.min_lr,
        warmup=warmup_steps,
        total=total_steps,
        cooldown=cooldown_steps,
    )


def make_optimizer(
    optim: Optim,
    schedule: Schedule,
    model: ModelDef,
    frozen: Any = None,
    *,
    seed: int = 0,
    total_steps: int = 0,
) -> optax.GradientTransformation:
    """Optimizer of `config.optim`, learning rate included.

    Args:
        optim: parsed block.
        schedule: step -> learning rate.
        model: its metadata say which parameters are decayed, which dimensions of a matrix are
            inputs, and how many layers lie above a parameter.
        frozen: tree of bool like the parameters; frozen ones have neither optimizer state nor
            updates. None: all are trained.
        seed: PRNG seed of adapters.
        total_steps: length of the run, for `final_weight_decay`.

    Raises:
        UserError: a key has an invalid value, or the optimizer takes no changing weight decay.
    """
    weight_decay = _weight_decay(optim, total_steps)
    if optim.shared.lora_rank:
        lora = Lora(optim.shared, model, seed)
        return lora.wrap(_chain(optim, schedule, weight_decay, lora.model))
    chain = _chain(optim, schedule, weight_decay, model)
    if frozen is None:
        return chain
    labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
    return optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def frozen_parameters(optim: Optim, model: ModelDef) -> Any:
    """Tree of bool like the parameters, those that are not trained; None where all are.

    Args:
        optim: parsed block.
        model: model whose parameters the expressions match.

    Raises:
        UserError: expressions that match nothing, or keys that contradict each other.
    """
    shared = optim.shared
    if shared.lora_rank < 0:
        raise UserError(f"{PATH}.lora_rank={shared.lora_rank}: expected 0 or more")
    if shared.lora_rank:
        return Lora(shared, model).frozen(model)
    if shared.lora_paths or shared.lora_full:
        raise UserError(f"{PATH}.lora_paths and lora_full need {PATH}.lora_rank, as 8")
    return frozen_mask(shared.freeze, model)


def _chain(
    optim: Optim, schedule: Schedule, weight_decay: float | Schedule, model: ModelDef
) -> optax.GradientTransformation:
    """Clipping, optimizer, factors and learning rate."""
    shared = optim.shared
    parts = [optax.clip_by_global_norm(shared.grad_clip_norm)] if shared.grad_clip_norm else []
    takes_schedule = getattr(optim.optimizer, "takes_schedule", False)
    if takes_schedule:
        parts.append(optim.optimizer.build(model, weight_decay, schedule))
    else:
        parts.append(optim.optimizer.build(model, weight_decay))
    if shared.layer_decay != 1:
        parts.append(scale_by_layer(shared.layer_decay, model))
    if shared.lr_factors:
        parts.append(scale_by_path(shared.lr_factors, model))
    if not takes_schedule:
        parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts)


def _weight_decay(optim: Optim, total_steps: int) -> float | Schedule:
    """Weight decay: a number, or a function of the step."""
    first, last = optim.shared.weight_decay, optim.shared.final_weight_decay
    if last is None:
        return first
    if isinstance(optim.optimizer, optax_functions.OptaxFunction):
        raise UserError(
            f"{PATH}.final_weight_decay applies to the optimizers {', '.join(OPTIMIZERS.table)}; "
            f"found {optim.shared.name!r}"
        )
    difference = optax.cosine_decay_schedule(first - last, total_steps)
    return lambda step: last + difference(step)


def scale_by_layer(decay: float, model: ModelDef) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay (Clark et al. 2020, "ELECTRA"; Bao et al. 2022, "BEiT").

    Args:
        decay: factor per layer above a parameter, in (0, 1].
        model: its `layers_above` says how many there are.

    Raises:
        UserError: `decay` out of its range.
    """
    if not 0 < decay <= 1:
        raise UserError(f"{PATH}.layer_decay={decay}: expected a number in (0, 1]")

    return _scale(jax.tree.map(lambda above: decay**above, model.layers_above()))


def scale_by_path(
    factors: Sequence[tuple[str, float]], model: ModelDef
) -> optax.GradientTransformation:
    """Learning rates that differ between parts of a model.

    Args:
        factors: see `OptimConfig.lr_factors`.
        model: model whose parameters the expressions match.

    Raises:
        UserError: an invalid expression, one that matches nothing, or a factor of at most 0.
    """
    scales = dict.fromkeys(flatten_dict(model.shapes(), sep="/"), 1.0)
    for pattern, factor in factors:
        if factor <= 0:
            raise UserError(
                f"{PATH}.lr_factors: the factor of {pattern!r} is {factor}: expected a positive "
                "number; config.optim.freeze stops the training of parameters"
            )
        for path in match_paths(pattern, scales, f"{PATH}.lr_factors"):
            scales[path] *= factor
    return _scale(unflatten_dict(scales, sep="/"))


def _scale(factors: Any) -> optax.GradientTransformation:
    """Multiplies updates by a tree of factors like the parameters."""

    def update(updates: Any, params: Any) -> Any:
        # The factors are mapped first: updates may hold masked nodes in place of parameters.
        return jax.tree.map(
            lambda factor, update: jax.tree.map(lambda u: u * factor, update), factors, updates
        )

    return optax.stateless(update)


def _resolve_optimizer(name: str) -> Any:
    """Dataclass of an optimizer's keys, which builds the optimizer."""
    if not isinstance(name, str) or name in OPTIMIZERS.table or ":" in name:
        component = OPTIMIZERS.resolve(name, f"{PATH}.name")
        if dataclasses.is_dataclass(component):
            return component
        return optax_functions.component(name, component)
    function = optax_functions.find(name)
    if function is None:
        raise unknown(name, [*OPTIMIZERS.table, *optax_functions.names()], f"{PATH}.name,")
    return optax_functions.component(name, function)


def _keys(config: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _inapplicable(key: str, names: dict[str, str], optimizer: Any, decay: Any) -> UserError:
    """Error for a key that belongs to none of the three dataclasses."""
    for registry, part, component in (
        (OPTIMIZERS, "name", optimizer),
        (SCHEDULES, "schedule", decay),
    ):
        owners = [other for other in registry.table if key in _keys(registry.resolve(other))]
        if owners:
            return UserError(
                f"{PATH}.{key} does not apply to the {registry.kind} {names[part]!r}: it is a key "
                f"of {', '.join(owners)}; keys of {names[part]}: "
                f"{', '.join(_keys(component)) or 'none'}"
            )
    keys = [*_keys(OptimConfig), *_keys(optimizer), *_keys(decay)]
    return unknown_key(key, PATH, keys)
