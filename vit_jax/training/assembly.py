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

from vit_jax.config import build_architecture
from vit_jax.data.batches import Batches
from vit_jax.data.sources import Source
from vit_jax.data.tokenizers import FILE_NAME, Tokenizer, make_tokenizer
from vit_jax.data.transforms import ImageLabel, ImageText, captions_of, parse_augmentation
from vit_jax.errors import UserError, check_name, unknown
from vit_jax.evaluators.embedding import Embedder, check_templates
from vit_jax.models import partitioning
from vit_jax.models.functional import ModelDef
from vit_jax.parallel.mesh import (
    batch_sharding,
    batch_shards,
    check_batch_size,
    make_mesh,
    replicated,
    to_devices,
)
from vit_jax.parallel.sharding import activation_constraint, check_sharded, state_shardings
from vit_jax.training.checkpoints import with_sharding
from vit_jax.training.objective import OBJECTIVES, build_objective
from vit_jax.training.optimizer import make_optimizer, make_schedule
from vit_jax.training.step import TrainState, init_state, make_train_step


def build_model(config: ConfigDict) -> ModelDef:
    """The model of `config.model`, without parameters."""
    family, architecture = build_architecture(config)
    return ModelDef(family, architecture, **config.compute.to_dict())


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
    check_name(config.objective.name, OBJECTIVES, "config.objective.name,")
    if config.objective.name != "contrastive":
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
    transform: ImageText | ImageLabel
    if tokenizer is None:
        check_classes(config, source)
        transform = ImageLabel(augment)
    else:
        check_templates(config.data.templates)
        transform = ImageText(augment, tokenizer, tuple(config.data.templates))
    return Batches(
        source,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        groups=group_rows(config.data.one_per, source),
        max_broken=config.data.max_broken,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def check_classes(config: ConfigDict, source: Source) -> None:
    """Refuses a source without labels, or with other classes than the model has outputs."""
    names, found = source.class_names, config.model.get("num_classes", 0)
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
            raise unknown(missing[0], example, "field in config.data.one_per,")
        groups.setdefault(tuple(example[field] for field in fields), []).append(row)
    return list(groups.values())


def build_embedder(
    config: ConfigDict, model: ModelDef, mesh: Mesh, tokenizer: Tokenizer | None
) -> Embedder:
    """What evaluators run pictures and texts through."""
    return Embedder(
        model,
        mesh=mesh,
        tokenizer=tokenizer,
        image_size=image_size(config),
        batch_size=config.eval_batch_size,
        **config.preprocess.to_dict(),
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled side of a run: what creates its state and what trains it.

    Attributes:
        model: without parameters.
        mesh: all devices.
        abstract: `ShapeDtypeStruct`s of the state, with shardings.
        init: () -> state, jitted; arrays are created where they belong.
        step: (state, batch) -> (state, metrics), jitted; the state is donated.
    """

    model: ModelDef
    mesh: Mesh
    abstract: TrainState
    init: Any
    step: Any


def build_program(
    config: ConfigDict, mesh: Mesh, *, warmup_steps: int, total_steps: int
) -> Program:
    """Builds the training program of a config on a mesh; nothing is compiled yet."""
    model = build_model(config)
    objective = build_objective(config, mesh, image_size(config))
    check_sharded(model, mesh)
    schedule = make_schedule(
        config.optim.schedule,
        lr=config.optim.lr,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
    )
    optimizer = make_optimizer(config.optim, schedule, model)

    def init() -> TrainState:
        return init_state(model, optimizer, config.seed, ema=config.optim.ema_decay > 0)

    train_step = make_train_step(
        model,
        objective,
        optimizer,
        schedule,
        seed=config.seed,
        ema_decay=config.optim.ema_decay,
    )

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple:
        with partitioning.use(activation_constraint(mesh), mesh.devices.flat[0].platform):
            return train_step(state, batch)

    abstract = jax.eval_shape(init)
    shardings = state_shardings(abstract, model, mesh, config.mesh.zero1)
    return Program(
        model=model,
        mesh=mesh,
        abstract=with_sharding(abstract, shardings),
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            step,
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
        ),
    )


def batch_shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """A global training batch as the step takes it."""
    size, count = image_size(config), config.batch_size
    return {
        "image": jax.ShapeDtypeStruct((count, size * size * 3), jnp.uint8),
        **(
            {"tokens": jax.ShapeDtypeStruct((count, config.model.text.context_length), jnp.int32)}
            if config.objective.name == "contrastive"
            else {"label": jax.ShapeDtypeStruct((count,), jnp.int32)}
        ),
    }


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
