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
from vit_jax.data.examples import check_classes
from vit_jax.data.loader import Loader, group_rows
from vit_jax.data.sources import Source, open_source
from vit_jax.data.tokenizers import FILE_NAME as TOKENIZER_FILE
from vit_jax.data.tokenizers import TRAINED, Tokenizer, learn_tokenizer, open_tokenizer
from vit_jax.data.tokenizers.tokenizer import check_layout
from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.suite import Suite
from vit_jax.inputs import ImageInputs
from vit_jax.models import registry
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.objectives import OBJECTIVES
from vit_jax.objectives.base import Context, Objective
from vit_jax.objectives.microbatches import Microbatches
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
from vit_jax.training.frozen_model import open_frozen_model, reads_same_tokens
from vit_jax.training.initialization import Initialization, build_initialization
from vit_jax.training.schedules import Durations, Schedule, ema_schedule
from vit_jax.training.state import TrainState, init_state
from vit_jax.training.step import make_train_step
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
    ):
        """See `build`."""
        self.config, self.workdir, self._devices, self._data = config, workdir, devices, data

    def with_config(self, config: ConfigDict, *, data: bool = False) -> "Experiment":
        """Another config on the same devices."""
        return build(config, devices=list(self.mesh.devices.flat), data=data)

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
        """The mesh of `config.mesh`, with batch sizes checked against it."""
        config, axes = self.config, self.config.mesh
        mesh = make_mesh(axes.data, axes.fsdp, axes.tensor, devices=self._devices)
        shards, parts = batch_shards(mesh), config.grad_accum_steps
        if parts < 1:
            raise UserError(f"config.grad_accum_steps={parts}: expected 1 or more")
        check_batch_size(config.batch_size, shards, "config.batch_size")
        noun = f"microbatches ({shards} devices x grad_accum_steps={parts})"
        check_batch_size(config.batch_size, shards * parts, "config.batch_size", noun)
        check_sharded(self.model, mesh)
        return mesh

    # --- data -------------------------------------------------------------------------------------

    @functools.cached_property
    def source(self) -> Source:
        """The training source."""
        return open_source(self.config.data.train)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer: that of the workdir, or of the model; None for models without text."""
        spec, text = self.spec.tokenizer, getattr(self.spec.architecture, "text", None)
        if text is None:
            return None
        sizes = {"vocab_size": text.vocab_size, "context_length": text.context_length}
        if spec is None:
            raise UserError("config.model.tokenizer is not set: the model reads text")
        if self.workdir is not None and (self.workdir / TOKENIZER_FILE).is_file():
            tokenizer = open_tokenizer(f"saved:{self.workdir}", **sizes)
        elif spec == TRAINED:
            data = self.config.data
            tokenizer = learn_tokenizer(
                self.source, data.templates, max_broken_fraction=data.max_broken_fraction, **sizes
            )
        else:
            tokenizer = open_tokenizer(spec, **sizes)
        check_layout(tokenizer, self.spec.architecture, f"config.model.tokenizer={spec!r}")
        return tokenizer

    @functools.cached_property
    def loader(self) -> Loader:
        """The training batches of this process."""
        config, data, fields = self.config, self.config.data, self.objective.fields
        if "label" in fields:
            classes = getattr(self.spec.architecture, "num_classes", None)
            check_classes(self.source, classes, f"config.data.train={data.train!r}")
        transform = batch_transform(
            fields,
            self.source,
            data.augment,
            self.inputs,
            tokenizer=self.tokenizer if {"tokens", "captions", "caption"} & {*fields} else None,
            templates=tuple(data.templates),
            max_pixels=data.max_image_pixels,
            **config_lib.batch_shapes(config),
        )
        return Loader(
            self.source,
            transform,
            batch_size=config.batch_size,
            seed=config.seed,
            groups=group_rows(data.group_by, self.source, data.max_broken_fraction),
            repeats=data.repeats,
            max_broken_fraction=data.max_broken_fraction,
            workers=data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    @functools.cached_property
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
                microbatches=Microbatches(self.config.grad_accum_steps, batch_shards(self.mesh)),
                open_model=functools.partial(
                    open_frozen_model, mesh=self.mesh, default=self.spec, compute=compute
                ),
                tokenize=lambda texts: self.embedder().tokenize(texts),
                class_names=lambda: self.source.class_names if self._data else None,
                reads_same_tokens=lambda other: reads_same_tokens(
                    self.spec, other, self.tokenizer if self._data else None
                ),
                **config_lib.batch_shapes(self.config),
                has_ema=self.optim.shared.ema_decay > 0,
            ),
        )

    @functools.cached_property
    def optim(self) -> optimizers.Optim:
        """The parsed keys of `config.optim`."""
        return optimizers.parse_optim(self.config.optim.to_dict())

    @functools.cached_property
    def schedule(self) -> Schedule:
        """Step -> learning rate."""
        durations = self.durations
        return optimizers.make_schedule(
            self.optim,
            warmup_steps=durations.warmup,
            total_steps=durations.total,
            cooldown_steps=durations.cooldown,
        )

    @functools.cached_property
    def frozen(self) -> Any:
        """Tree of bool, which parameters are not trained; None where all are."""
        return optimizers.frozen_parameters(self.optim, self.model)

    @functools.cached_property
    def optimizer(self) -> Any:
        """The gradient transformation."""
        options = {"seed": self.config.seed, "total_steps": self.durations.total}
        return optimizers.make_optimizer(
            self.optim, self.schedule, self.model, self.frozen, **options
        )

    # --- state and step ---------------------------------------------------------------------------

    @functools.cached_property
    def initialization(self) -> Initialization | None:
        """Initial weights from elsewhere; None for fresh parameters and for resumed runs."""
        resumed = self.workdir is not None and has_checkpoint(self.workdir)
        if resumed or not self._data:
            return None
        return build_initialization(self.config.init, self.spec, self.model, lambda: self.tokenizer)

    @functools.cached_property
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

        shared = self.optim.shared
        return init_state(self.model, self.optimizer, key, shared.ema_decay > 0, fill)

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
        fields, shapes = self.objective.fields, config_lib.batch_shapes(config)
        return abstract_batch(fields, config.batch_size, self.inputs, length, **shapes)

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
        config, spec = self.config.to_dict(), self.spec
        block = {"name": config["model"].get("name"), **registry.describe(spec.architecture)}
        block |= {"inputs": dataclasses.asdict(spec.inputs), "tokenizer": spec.tokenizer}
        config["model"] = block
        keys = dataclasses.asdict(self._selected_objective[1])
        config["objective"] = {"name": config["objective"]["name"], **keys}
        config["optim"] = self.optim.as_block()
        return ConfigDict(config)
