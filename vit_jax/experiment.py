"""From a config to all objects of a run: the only place where they are put together.

`train`, `evaluate`, `plan` and the benchmarks start from `build(config)`.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax import compilation_cache
from vit_jax import config as config_lib
from vit_jax.checkpoint.manager import has_checkpoint, with_sharding
from vit_jax.data.batches import abstract_batch, batch_transform
from vit_jax.data.broken import Transform
from vit_jax.data.examples import check_classes
from vit_jax.data.loader import Loader, group_rows
from vit_jax.data.sources import Source, open_source
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.data.tokenizers.of_model import tokenizer_of_model
from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.suite import Suite
from vit_jax.inputs import ImageInputs
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.objectives import OBJECTIVES
from vit_jax.objectives.base import Context, Objective
from vit_jax.objectives.microbatches import Microbatches, cut_batch
from vit_jax.parallel.mesh import (
    BATCH_AXES,
    batch_sharding,
    batch_shards,
    check_batch_size,
    make_mesh,
    replicated,
)
from vit_jax.parallel.sharding import check_sharded, state_shardings, tracing_for
from vit_jax.paths import StrPath
from vit_jax.training import loop, optimizers
from vit_jax.training.class_texts import class_names, class_texts
from vit_jax.training.frozen_model import open_frozen_model
from vit_jax.training.initialization import Initialization, build_initialization
from vit_jax.training.schedules import Durations, Schedule, ema_schedule
from vit_jax.training.state import TrainState, init_state
from vit_jax.training.step import make_train_step
from vit_jax.training.variants import Variants, make_variants, shared
from vit_jax.workdir import workdir_path


def build(
    config: ConfigDict,
    *,
    workdir: StrPath | None = None,
    devices: list[Any] | None = None,
    data: bool = True,
) -> "Experiment":
    """Declares an experiment; its parts are built when they are first used.

    Args:
        config: see `vit_jax.config`.
        workdir: folder of the run, which may hold a tokenizer and checkpoints of earlier starts.
        devices: devices of the mesh; None for all.
        data: whether training data and initial weights are there to be opened; False to plan.

    Raises:
        UserError: a key that belongs to no component is wrong.
    """
    config_lib.validate(config)
    return Experiment(config, workdir_path(workdir) if workdir else None, devices, data)


def train(config: ConfigDict, workdir: StrPath) -> dict[str, float]:
    """Trains a model from its config, see `vit_jax.training.loop.train`.

    Args:
        config: see `vit_jax.config`.
        workdir: folder of the run.

    Returns:
        Metrics of the last evaluation.
    """
    return loop.train(build(config, workdir=workdir), workdir)


class Experiment:
    """The parts of a run, each built on first use from the config and the parts that it needs."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path | None,
        devices: list[Any] | None,
        data: bool,
        base: "Experiment | None" = None,
    ):
        """See `build`; `base` is the run that a stage or variant shares its state and data with."""
        self.config, self.workdir, self._devices, self._data = config, workdir, devices, data
        self.base = base

    def with_config(self, config: ConfigDict) -> "Experiment":
        """Another config on the same devices, without data."""
        return build(config, devices=list(self.mesh.devices.flat), data=False)

    def derived(self, config: ConfigDict) -> "Experiment":
        """A stage or variant of this run, with its state, data and devices."""
        config_lib.validate(config)
        return Experiment(config, self.workdir, list(self.mesh.devices.flat), self._data, base=self)

    @functools.cached_property
    def variants(self) -> Variants:
        """Variants of the step, one of which is drawn for each batch."""
        return make_variants(self)

    # --- model ------------------------------------------------------------------------------------

    @functools.cached_property
    def spec(self) -> ModelSpec:
        """Architecture, image preprocessing and tokenizer."""
        return config_lib.model_spec(self.config)

    @property
    def inputs(self) -> ImageInputs:
        """Image preprocessing of the model."""
        return self.spec.inputs

    @functools.cached_property
    def model(self) -> ModelDef:
        """The model without parameters."""
        return ModelDef(self.spec.architecture, **self.config.compute.to_dict())

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh of `config.mesh`, with the batch size checked against it."""
        axes = self.config.mesh
        mesh = make_mesh(axes.data, axes.fsdp, axes.tensor, devices=self._devices)
        check_batch_size(self.config.batch_size, batch_shards(mesh), "config.batch_size")
        check_sharded(self.model, mesh)
        return mesh

    @functools.cached_property
    def microbatches(self) -> Microbatches:
        """How a batch is cut, see `config.grad_accum_steps` and `config.token_budget`."""
        config, shards, budget = self.config, batch_shards(self.mesh), self.config.token_budget
        tokens = self.spec.image_tokens if budget else 0
        return cut_batch(config.batch_size, shards, config.grad_accum_steps, budget, tokens)

    # --- data -------------------------------------------------------------------------------------

    @shared
    def source(self) -> Source:
        """The training source."""
        return open_source(self.config.data.train)

    @shared
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer: that of the workdir, or of the model; None for models without text."""
        return tokenizer_of_model(
            self.spec.tokenizer,
            self.spec.architecture,
            workdir=self.workdir,
            open_source=lambda: self.source,
            data=self.config.data,
            class_texts=lambda: class_texts(self.source, self._selected_objective[1]),
        )

    @functools.cached_property
    def transform(self) -> Transform:
        """Maps an example of the source to the fields of a batch."""
        data, fields = self.config.data, self.objective.fields
        if "label" in fields:
            classes = getattr(self.spec.architecture, "num_classes", None)
            check_classes(self.source, classes, f"config.data.train={data.train!r}")
        return batch_transform(
            fields,
            self.source,
            data.augment,
            self.inputs,
            tokenizer=self.tokenizer if {"tokens", "captions", "caption"} & {*fields} else None,
            templates=tuple(data.templates),
            max_pixels=data.max_image_pixels,
            other_tokens=self.objective.other_tokens,
            **config_lib.batch_shapes(self.config),
        )

    @functools.cached_property
    def loader(self) -> Loader:
        """The training batches of this process."""
        config, data = self.config, self.config.data
        return Loader(
            self.source,
            [variant.experiment.transform for variant in self.variants],
            draw=self.variants.draw,
            batch_size=config.batch_size,
            seed=config.seed,
            groups=group_rows(data.group_by, self.source, data.max_broken_fraction),
            repeats=data.repeats,
            max_broken_fraction=data.max_broken_fraction,
            workers=data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    @shared
    def durations(self) -> Durations:
        """Lengths of the run in steps.

        To plan, any lengths serve: they are constants of the step and change nothing of its cost.
        """
        if not self._data:
            return Durations(total=1000, warmup=1)
        config, epoch = self.config, self.loader.epoch_examples
        units = {"batch_size": config.batch_size, "epoch_examples": epoch}
        total = config_lib.steps(config, "total", **units)
        units["total"] = total
        return Durations(
            total=total,
            warmup=config_lib.steps(self.optim.shared, "warmup", **units),
            cooldown=config_lib.steps(self.optim.shared, "cooldown", **units),
            eval=config_lib.steps(config, "eval", **units),
            checkpoint=config_lib.steps(config, "checkpoint", **units),
        )

    # --- objective and optimizer ------------------------------------------------------------------

    @functools.cached_property
    def _selected_objective(self) -> tuple[Any, Any]:
        """The class of the objective and its parsed keys."""
        return OBJECTIVES.select(self.config.objective.to_dict(), "config.objective")

    @functools.cached_property
    def objective(self) -> Objective:
        """The loss, checked against the model."""
        component, keys = self._selected_objective
        compute = {**self.config.compute.to_dict(), "remat": "none"}
        return component(
            keys,
            Context(
                spec=self.spec,
                model=self.model,
                mesh=self.mesh,
                batch_axes=BATCH_AXES,
                microbatches=self.microbatches,
                open_model=functools.partial(
                    open_frozen_model, mesh=self.mesh, default=self.spec, compute=compute
                ),
                tokenize=lambda texts: self.embedder().tokenize(texts),
                class_names=lambda: class_names(self.source) if self._data else None,
                tokenizer=lambda: self.tokenizer if self._data else None,
                **config_lib.batch_shapes(self.config),
                has_ema=self.optim.shared.ema_decay > 0,
            ),
        )

    @shared
    def optim(self) -> optimizers.Optim:
        """The parsed keys of `config.optim`."""
        return optimizers.parse_optim(self.config.optim.to_dict())

    @shared
    def schedule(self) -> Schedule:
        """Step -> learning rate."""
        durations = self.durations
        return optimizers.make_schedule(
            self.optim,
            warmup_steps=durations.warmup,
            total_steps=durations.total,
            cooldown_steps=durations.cooldown,
        )

    @shared
    def frozen(self) -> Any:
        """Tree of bool, which parameters are not trained; None where all are."""
        return optimizers.frozen_parameters(self.optim, self.model)

    @shared
    def optimizer(self) -> Any:
        """The gradient transformation."""
        run = {"seed": self.config.seed, "total_steps": self.durations.total}
        return optimizers.make_optimizer(self.optim, self.schedule, self.model, self.frozen, **run)

    # --- state and step ---------------------------------------------------------------------------

    @functools.cached_property
    def initialization(self) -> Initialization | None:
        """Initial weights from elsewhere; None for fresh parameters and for resumed runs."""
        resumed = self.workdir is not None and has_checkpoint(self.workdir)
        if resumed or not self._data:
            return None
        return build_initialization(self.config.init, self.spec, self.model, lambda: self.tokenizer)

    @shared
    def abstract_state(self) -> TrainState:
        """`ShapeDtypeStruct`s of the state, with shardings."""
        weights = [] if self.initialization is None else [self.initialization.abstract]
        abstract = jax.eval_shape(self._init, self._seed_key, *weights)
        shardings = state_shardings(abstract, self.model, self.mesh, self.config.mesh.zero1)
        return with_sharding(abstract, shardings)

    def init_state(self) -> TrainState:
        """The first state; its arrays are created where they belong."""
        weights = [] if self.initialization is None else [self.initialization.load(self.mesh)]
        init = jax.jit(
            self._init,
            out_shardings=self._state_shardings,
            compiler_options=compilation_cache.options_to_run_once(),
        )
        return init(self._seed_key, *weights)

    def _init(self, key: jax.Array, *weights: Params) -> TrainState:
        def fill(params: Params) -> Params:
            if self.initialization is None:
                return params
            return self.initialization.fill(params, *weights)

        has_ema = self.optim.shared.ema_decay > 0
        anchor = has_ema and "anchor" in self.objective.reads_state
        return init_state(self.model, self.optimizer, key, has_ema, fill, anchor=anchor)

    @property
    def _seed_key(self) -> jax.Array:
        """An argument of `_init`, so that one compiled program serves all seeds."""
        return jax.random.key(self.config.seed)

    @property
    def _state_shardings(self) -> Any:
        return jax.tree.map(lambda x: x.sharding, self.abstract_state)

    @functools.cached_property
    def train_step(self) -> Any:
        """(state, batch, *constants) -> (state, metrics), jitted; the state is donated."""
        mesh, shared = self.mesh, self.optim.shared
        train_step = make_train_step(
            self.model,
            self.objective,
            self.optimizer,
            self.schedule,
            seed=self.config.seed,
            total_steps=self.durations.total,
            ema_decay=ema_schedule(shared.ema_schedule, shared.ema_decay, self.durations.total),
            frozen=self.frozen,
            skip_non_finite=self.config.non_finite == "skip",
        )

        def step(state: TrainState, batch: dict[str, jax.Array], *constants: Params) -> tuple:
            with tracing_for(self.model, mesh):
                return train_step(state, batch, *constants)

        constants = jax.tree.map(lambda x: x.sharding, self.objective.abstract_constants)
        return jax.jit(
            step,
            in_shardings=(self._state_shardings, batch_sharding(mesh), *constants),
            out_shardings=(self._state_shardings, replicated(mesh)),
            donate_argnums=0,
        )

    @functools.cached_property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """`ShapeDtypeStruct`s of a global training batch."""
        config, text = self.config, getattr(self.spec.architecture, "text", None)
        length = text.context_length if text else 0
        objective, shapes = self.objective, config_lib.batch_shapes(config)
        shapes["other_tokens"] = objective.other_tokens
        return abstract_batch(objective.fields, config.batch_size, self.inputs, length, **shapes)

    # --- evaluation -------------------------------------------------------------------------------

    def embedder(self, cache: str | pathlib.Path | None = None) -> Embedder:
        """Runs images and texts through the model.

        Args:
            cache: folder in which features outlive the process; None for none.
        """
        return Embedder(
            self.model,
            inputs=self.inputs,
            mesh=self.mesh,
            tokenizer=self.tokenizer,
            batch_size=self.config.eval_batch_size,
            cache=cache,
            max_image_pixels=self.config.data.max_image_pixels,
        )

    @functools.cached_property
    def suite(self) -> Suite:
        """The evaluators of `config.evals`."""
        if (count := self.config.eval_predictions) < 0:
            raise UserError(f"config.eval_predictions={count}: expected 0 or more examples")
        return Suite(self.config.evals.to_dict(), self.embedder(), objective=self.objective)

    @functools.cached_property
    def resolved_config(self) -> ConfigDict:
        """The config with every key of its components, as it is saved with the run."""
        keys = dataclasses.asdict(self._selected_objective[1])
        return config_lib.resolved(self.config, self.spec, keys, self.optim.as_block())
