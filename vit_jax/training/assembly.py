"""From a config to the objects it describes. Shared by training and evaluation."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.checkpoint.manager import with_sharding
from vit_jax.config import build_architecture
from vit_jax.data.augment import parse_augmentation
from vit_jax.data.examples import ImageLabel, ImageOnly, ImageText, captions_of
from vit_jax.data.loader import Batches
from vit_jax.data.sources import Source
from vit_jax.data.tokenizers import FILE_NAME, Tokenizer, make_tokenizer
from vit_jax.errors import UserError, unknown
from vit_jax.evaluators.embedding import Embedder, check_templates
from vit_jax.models import partitioning
from vit_jax.models.definition import ModelDef, Params
from vit_jax.parallel.mesh import (
    batch_sharding,
    batch_shards,
    check_batch_size,
    make_mesh,
    replicated,
    to_devices,
)
from vit_jax.parallel.sharding import activation_constraint, check_sharded, state_shardings
from vit_jax.training.freezing import frozen_mask
from vit_jax.training.initialization import build_start
from vit_jax.training.objective import build_objective, fields_read, has_teacher
from vit_jax.training.optimizers import make_optimizer
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import TrainState, init_state, make_train_step
from vit_jax.training.teacher import Teacher, build_teacher


def build_model(config: ConfigDict) -> ModelDef:
    """The model of `config.model`, without parameters."""
    family, architecture = build_architecture(config)
    return ModelDef(architecture, **config.compute.to_dict())


def image_size(config: ConfigDict) -> int:
    """Side of the model's input, px."""
    return config.model.image.image_size if "image" in config.model else config.model.image_size


def build_tokenizer(config: ConfigDict, source: Source, workdir: Any) -> Tokenizer | None:
    """The tokenizer of `config.tokenizer`, for training; None for objectives without text.

    Args:
        config: of the run.
        source: training source, whose captions a "trained" tokenizer is learned from.
        workdir: of the run, which may have learned one before.
    """
    if "tokens" not in fields_read(config):
        return None
    if config.tokenizer is None:
        raise UserError("config.tokenizer is not set: contrastive training reads captions")
    if config.tokenizer != "trained":
        tokenizer = make_tokenizer(config.tokenizer, **_text_sizes(config))
    elif (pathlib.Path(workdir) / FILE_NAME).is_file():
        tokenizer = Tokenizer.load(workdir, **_text_sizes(config))
    else:
        tokenizer = _train_tokenizer(config, source)
    if config.model.text.pool == "eot" and not tokenizer.end_is_largest:
        raise UserError(
            f"config.tokenizer={config.tokenizer!r}: its end of text is not the largest id, which "
            "config.model.text.pool='eot' looks for; pool='last' goes with such a tokenizer"
        )
    return tokenizer


def _train_tokenizer(config: ConfigDict, source: Source) -> Tokenizer:
    """Learns the tokenizer from the captions of the training source."""
    texts = [captions_of(source.annotation(row)) for row in range(len(source))]
    captions = {caption for each in texts for caption in each}
    # Words of the templates occur in most texts: without them they would fall apart into bytes.
    templates = [template.format("") for template in config.data.templates]
    words = [word for word in templates for _ in range(len(captions) // 10)]
    return Tokenizer.train([*captions, *words], **_text_sizes(config))


def load_tokenizer(config: ConfigDict, workdir: Any) -> Tokenizer | None:
    """The tokenizer that a run saved; None for models without text."""
    return None if config.tokenizer is None else Tokenizer.load(workdir, **_text_sizes(config))


def _text_sizes(config: ConfigDict) -> dict[str, int]:
    text = config.model.text
    return {"vocab_size": text.vocab_size, "context_length": text.context_length}


def build_batches(config: ConfigDict, source: Source, tokenizer: Tokenizer | None) -> Batches:
    """This process's training batches.

    Args:
        config: of the run.
        source: training source.
        tokenizer: for objectives that read text.
    """
    augment = parse_augmentation(config.data.augment, size=image_size(config))
    transform: ImageOnly | ImageLabel | ImageText = ImageOnly(augment)
    if "label" in fields_read(config):
        check_classes(config, source)
        transform = ImageLabel(augment)
    elif tokenizer is not None:
        check_templates(config.data.templates)
        transform = ImageText(augment, tokenizer, tuple(config.data.templates))
    return Batches(
        source,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        groups=group_rows(config.data.group_by, source),
        repeats=config.data.repeats,
        max_broken_fraction=config.data.max_broken_fraction,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def check_classes(config: ConfigDict, source: Source) -> None:
    """Refuses a source without labels, or with other classes than the model has outputs."""
    if "num_classes" not in config.model:
        raise UserError(
            f"config.objective.name={config.objective.name!r} needs a model with a head: the "
            f"family {config.model.family!r} has none"
        )
    names, found = source.class_names, config.model.num_classes
    if names is None:
        raise UserError(f"config.data.train={config.data.train!r} has no labels to classify by")
    if len(names) != found:
        raise UserError(
            f"config.data.train={config.data.train!r} has {len(names)} classes, "
            f"config.model.num_classes is {found}: set it to {len(names)}"
        )


def group_rows(fields: Sequence[str], source: Source) -> list[list[int]] | None:
    """Rows of which an epoch takes one each, in the order of their first rows; None for all rows.

    Args:
        fields: names of example fields; rows that agree in all of them are one group.
        source: the training source.
    """
    if not fields:
        return None
    groups: dict[tuple, list[int]] = {}
    for row in range(len(source)):
        example = source.annotation(row)
        if missing := [field for field in fields if field not in example]:
            raise unknown(missing[0], example, "field in config.data.group_by,")
        groups.setdefault(tuple(example[field] for field in fields), []).append(row)
    return list(groups.values())


def build_embedder(
    config: ConfigDict,
    model: ModelDef,
    mesh: Mesh,
    tokenizer: Tokenizer | None,
    cache: Any = None,
) -> Embedder:
    """What evaluators run images and texts through; `cache` is a folder for features."""
    return Embedder(
        model,
        mesh=mesh,
        tokenizer=tokenizer,
        image_size=image_size(config),
        batch_size=config.eval_batch_size,
        cache=cache,
        **config.preprocess.to_dict(),
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled side of a run: what creates its state and what trains it.

    Attributes:
        model: without parameters.
        mesh: all devices.
        abstract: `ShapeDtypeStruct`s of the state, with shardings.
        init: () -> state; arrays are created where they belong, weights are read.
        step: (state, batch, *constants) -> (state, metrics), jitted; the state is donated.
        teacher: whose parameters are the step's only constants; None for none.
    """

    model: ModelDef
    mesh: Mesh
    abstract: TrainState
    init: Any
    step: Any
    teacher: Teacher | None

    @property
    def abstract_constants(self) -> tuple[Params, ...]:
        """`ShapeDtypeStruct`s of what the step reads beside state and batch."""
        return () if self.teacher is None else (self.teacher.abstract,)

    def load_constants(self) -> tuple[Params, ...]:
        """What the step reads beside state and batch."""
        return () if self.teacher is None else (self.teacher.load(),)


def build_program(
    config: ConfigDict,
    mesh: Mesh,
    *,
    warmup_steps: int,
    total_steps: int,
    cooldown_steps: int = 0,
    resumed: bool = False,
) -> Program:
    """Builds the training program of a config on a mesh; nothing is compiled yet.

    Args:
        config: of the run.
        mesh: the mesh.
        warmup_steps: of the learning rate.
        total_steps: of the run.
        cooldown_steps: of the learning rate.
        resumed: whether the run goes on from a checkpoint (or is only planned), so that nobody
            asks for the weights of `config.init`.
    """
    model = build_model(config)
    start = None if resumed else build_start(config, model)
    teacher = build_teacher(config, mesh) if has_teacher(config) else None
    objective = build_objective(config, mesh, image_size(config), teacher)
    check_sharded(model, mesh)
    schedule = make_schedule(
        config.optim,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        cooldown_steps=cooldown_steps,
    )
    frozen = frozen_mask(config.optim.freeze, model)
    optimizer = make_optimizer(config.optim, schedule, model, frozen)

    def init(*weights: Params) -> TrainState:
        def fill(params: Params) -> Params:
            return params if start is None else start.fill(params, *weights)

        return init_state(model, optimizer, config.seed, config.optim.ema_decay > 0, fill)

    train_step = make_train_step(
        model,
        objective,
        optimizer,
        schedule,
        seed=config.seed,
        ema_decay=config.optim.ema_decay,
        frozen=frozen,
        skip_non_finite=config.non_finite == "skip",
    )

    def step(state: TrainState, batch: dict[str, jax.Array], *constants: Params) -> tuple:
        with partitioning.use(activation_constraint(mesh), mesh.devices.flat[0].platform):
            return train_step(state, batch, *constants)

    abstract = jax.eval_shape(init, *([] if start is None else [start.origin.model.shapes()]))
    shardings = state_shardings(abstract, model, mesh, config.mesh.zero1)
    compiled_init = jax.jit(init, out_shardings=shardings)
    constants = () if teacher is None else (teacher.shardings,)
    return Program(
        model=model,
        mesh=mesh,
        abstract=with_sharding(abstract, shardings),
        init=lambda: compiled_init(*([] if start is None else [start.load(mesh)])),
        step=jax.jit(
            step,
            in_shardings=(shardings, batch_sharding(mesh), *constants),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
        ),
        teacher=teacher,
    )


def batch_shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """A global training batch as the step takes it."""
    size, count = image_size(config), config.batch_size
    shapes = {
        "image": lambda: jax.ShapeDtypeStruct((count, size * size * 3), jnp.uint8),
        "label": lambda: jax.ShapeDtypeStruct((count,), jnp.int32),
        "tokens": lambda: jax.ShapeDtypeStruct(
            (count, config.model.text.context_length), jnp.int32
        ),
    }
    return {field: shapes[field]() for field in fields_read(config)}


def random_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.Array]:
    """A batch of noise, to time the step."""
    rng, shapes = np.random.default_rng(0), batch_shapes(config)
    batch = {k: rng.integers(1, 255, x.shape).astype(x.dtype) for k, x in shapes.items()}
    return to_devices(batch, mesh)


def check_batch_sizes(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses batches that devices and accumulation do not divide."""
    shards = batch_shards(mesh)
    check_batch_size(config.batch_size, shards, "config.batch_size")
    if config.grad_accum_steps < 1:
        raise UserError(f"config.grad_accum_steps={config.grad_accum_steps}: expected 1 or more")
    parts = shards * config.grad_accum_steps
    what = f"parts ({shards} devices x grad_accum_steps={config.grad_accum_steps})"
    check_batch_size(config.batch_size, parts, "config.batch_size", what)
    check_batch_size(config.eval_batch_size, shards, "config.eval_batch_size")


def build_mesh(config: ConfigDict) -> Mesh:
    """The mesh of `config.mesh`."""
    return make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
