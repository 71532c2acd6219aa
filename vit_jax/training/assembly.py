"""From a config to the objects it describes. Shared by training and evaluation."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.config import build_architecture
from vit_jax.data.batches import Batches
from vit_jax.data.preprocess import normalize
from vit_jax.data.sources import Source
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.data.transforms import ImageText, captions_of, parse_augmentation
from vit_jax.errors import UserError, unknown
from vit_jax.evaluators.embedding import Embedder, check_templates
from vit_jax.models.functional import ModelDef
from vit_jax.objectives.contrastive import Contrastive
from vit_jax.objectives.contrastive_loss import KINDS
from vit_jax.parallel.mesh import BATCH_AXES


def build_model(config: ConfigDict) -> ModelDef:
    """The model of `config.model`, without parameters."""
    family, architecture = build_architecture(config)
    return ModelDef(family, architecture, **config.compute.to_dict())


def image_size(config: ConfigDict) -> int:
    """Side of the model's input, px."""
    return config.model.image.image_size if "image" in config.model else config.model.image_size


def train_tokenizer(config: ConfigDict, source: Source) -> Tokenizer:
    """Learns the tokenizer from the captions of the training source."""
    texts = [captions_of(source[i]) for i in range(len(source))]
    captions = {caption for each in texts for caption in each}
    # Words of the templates occur in most texts: without them they would fall apart into bytes.
    templates = [template.format("") for template in config.data.templates]
    words = [word for word in templates for _ in range(len(captions) // 10)]
    return Tokenizer.train(
        [*captions, *words],
        vocab_size=config.model.text.vocab_size,
        context_length=config.model.text.context_length,
    )


def load_tokenizer(config: ConfigDict, workdir: Any) -> Tokenizer | None:
    """The tokenizer that a run saved; None for models without text."""
    if config.tokenizer is None:
        return None
    text = config.model.text
    return Tokenizer.load(workdir, vocab_size=text.vocab_size, context_length=text.context_length)


def build_objective(config: ConfigDict, mesh: Mesh) -> Contrastive:
    """The objective of `config.objective`, checked against the model."""
    kind = config.objective.name
    if kind not in KINDS:
        raise unknown(kind, KINDS, "objective")
    if config.model.family != "clip":
        raise UserError(
            f"config.objective.name={kind!r} compares pictures with texts: it needs a model of "
            f"the family clip, found {config.model.family!r}"
        )
    if kind == "sigmoid" and config.model.init_logit_bias is None:
        raise UserError(
            "config.objective.name='sigmoid' needs config.model.init_logit_bias (SigLIP: -10.0)"
        )
    return Contrastive(kind, mesh=mesh, batch_axes=BATCH_AXES)


def build_batches(config: ConfigDict, source: Source, tokenizer: Tokenizer) -> Batches:
    """This process's training batches."""
    check_templates(config.data.templates)
    augment = parse_augmentation(config.data.augment, size=image_size(config))
    groups = None
    if config.data.one_per_class:
        if source.labels is None:
            raise UserError(f"config.data.one_per_class: {config.data.train} has no labels")
        groups = group_rows(source.labels.tolist())
    return Batches(
        source,
        ImageText(augment, tokenizer, tuple(config.data.templates)),
        batch_size=config.batch_size,
        seed=config.seed,
        groups=groups,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def group_rows(labels: Iterable[int]) -> list[list[int]]:
    """Rows of each label, in the order of the labels' first rows."""
    groups: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault(label, []).append(row)
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


def build_prepare(config: ConfigDict) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What happens to a batch on the devices: uint8 pictures are normalised."""
    mean, std = tuple(config.preprocess.mean), tuple(config.preprocess.std)

    def prepare(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "image": normalize(batch["image"], mean, std)}

    return prepare
