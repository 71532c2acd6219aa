"""Region-text pre-training of RegionCLIP (Zhong et al. 2022, sections 3.2 and 3.3)."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Key

from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.objectives.base import Batch, Context, Metrics, Objective, check_range
from vit_jax.objectives.contrastive.loss import contrastive_loss
from vit_jax.parallel.mesh import replicated
from vit_jax.parallel.sharding import tracing_for
from vit_jax.paths import as_path

# Concepts of the published run, nouns of COCO's captions: the size of a plan without a list.
_PUBLISHED_CONCEPTS = 4764
_PROMPTS_AT_ONCE = 1024


class RegionText(Objective):
    """A frozen CLIP names the regions of an image, and the model learns its names.

    The boxes of an image are proposals, of any source. The teacher, a RegionCLIP with the weights
    of CLIP, compares each of them with a list of concepts. Its most probable concept is the pseudo
    label of a region; regions with a lower probability than `concept_threshold` are left out,
    unless all regions of a batch are. The loss is the weighted sum of

    - the contrast of a region with the concepts of all regions of the global batch, each as often
      as it occurs (equation 1);
    - the divergence of the model's distribution over all concepts from the teacher's (equation 2);
    - CLIP's loss of whole images, as regions, and captions (equation 3 with one region per image).

    As in the authors' code, regions of one concept are positives of each other; there the batch of
    the first term is that of one GPU. Embeddings of the concepts are those of the teacher's text
    tower. The text tower of the model is frozen in the published recipe, so that they are equal.

    Metrics: `contrastive_loss`, `distillation_loss` and `image_text_loss`, unweighted; `kept`, the
    fraction of regions with a pseudo label; `agreement`, the fraction of these for which the model
    has the same best concept; `concepts`, the number of different pseudo labels of a batch.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective; the defaults are those of the authors' recipe.

        Attributes:
            concepts: text file with one concept per line, as "fire truck"; "" to plan a run.
            templates: prompt templates with one `{}`, whose embeddings are averaged.
            teacher_weights: weights of the teacher, as RN50.pt, or workdir of an earlier run.
            teacher_model: registered model of the teacher, as regionclip_rn50.
            concept_threshold: probability that a pseudo label exceeds.
            temperature: divisor of cosine similarities, in all terms.
            contrastive_weight: weight of the contrast of regions and concepts.
            distillation_weight: weight of the divergence from the teacher.
            image_text_weight: weight of the loss of images and captions; 0: no captions are read.
        """

        concepts: str = ""
        templates: tuple[str, ...] = ("{}",)
        teacher_weights: str = ""
        teacher_model: str = ""
        concept_threshold: float = 0.1
        temperature: float = 0.01
        contrastive_weight: float = 1.0
        distillation_weight: float = 1.0
        image_text_weight: float = 1.0

    config: Config
    is_mean_over_examples = False

    def __init__(self, config: Config, context: Context):
        """Reads the list of concepts and opens the teacher, without reading its parameters.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: an invalid key, a model without regions, no teacher, one without regions or
                with other embeddings, or a list of concepts that cannot be read.
        """
        super().__init__(config, context)
        _check_config(config)
        _check_model(context.module, context.architecture_name)
        context.spec.inputs.extent(*context.spec.inputs.size)
        self._concepts = read_concepts(config.concepts) if config.concepts else None
        self.teacher = context.open_model(config.teacher_weights, config.teacher_model)
        model = self.teacher.model
        own, other = context.spec.architecture, self.teacher.spec.architecture
        _check_model(model.bind(model.shapes()), f"the teacher {type(other).__name__}")
        if (own.embed_dim, own.text) != (other.embed_dim, other.text):
            raise UserError(
                f"the teacher {config.teacher_weights or config.teacher_model} has another text "
                f"tower, or embeddings of {other.embed_dim} instead of {own.embed_dim} features: "
                "expected that of the model"
            )

    @property
    def fields(self) -> tuple[str, ...]:  # type: ignore[override]
        """Fields of a batch that are read; captions only for the loss of images and captions."""
        return ("image", "boxes", *(("caption",) if self.config.image_text_weight else ()))

    @property
    def abstract_constants(self) -> tuple[Params, ...]:  # type: ignore[override]
        """`ShapeDtypeStruct`s of the teacher's parameters and of the concepts' embeddings."""
        count = _PUBLISHED_CONCEPTS if self._concepts is None else len(self._concepts)
        shape, mesh = (count, self.teacher.spec.architecture.embed_dim), self.context.mesh
        sharding = None if mesh is None else replicated(mesh)
        concepts: Any = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        return self.teacher.abstract, {"concepts": concepts}

    def load_constants(self) -> tuple[Params, ...]:
        """Reads the teacher's parameters and embeds the concepts."""
        if self._concepts is None:
            raise UserError(
                "config.objective.concepts is not set: expected a text file with one concept per "
                "line"
            )
        params = self.teacher.load()
        templates, mesh = self.config.templates, self.context.mesh
        rows = self._embed_texts(params, [t.format(c) for c in self._concepts for t in templates])
        mean = rows.reshape(len(self._concepts), len(templates), -1).mean(axis=1)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        if mesh is None:
            placed: Any = jnp.asarray(mean)
        else:
            placed = jax.make_array_from_callback(mean.shape, replicated(mesh), lambda i: mean[i])
        return params, {"concepts": placed}

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch.

        Args:
            model: classifier of boxes.
            batch: `image`, packed; `boxes` (B, N, 4), cxcywh as fractions of the model's input,
                zeros for padding; `caption` (B, T) if `image_text_weight` is not 0.
            rng: key for the model; None for evaluation mode.
            *constants: the teacher's parameters, and `concepts`, their embeddings (C, D).
        """
        teacher, concepts = constants[0], constants[1]["concepts"]
        config, boxes = self.config, batch["boxes"]
        arrays = tuple(batch[name] for name in self.fields)
        own, taught, *rest = self.context.microbatches.run(
            self._embedding_by(teacher), model, arrays, rng
        )
        shape = (*boxes.shape[:2], concepts.shape[1])
        regions, images = own[:, : -shape[2]].reshape(shape), own[:, -shape[2] :]
        losses, metrics = region_losses(
            regions @ concepts.T / config.temperature,
            taught.reshape(shape) @ concepts.T / config.temperature,
            jnp.all(boxes[..., 2:] > 0, axis=-1),
            config.concept_threshold,
        )
        if rest:
            losses["image_text"], more = contrastive_loss(
                images,
                rest[0],
                logit_scale=1 / config.temperature,
                mesh=self.context.mesh,
                batch_axes=self.context.batch_axes,
            )
            metrics |= more
        loss = sum(getattr(config, f"{name}_weight") * x for name, x in losses.items())
        return loss, {**{f"{name}_loss": x for name, x in losses.items()}, **metrics}

    def _embedding_by(self, teacher: Params) -> Callable[..., tuple[jax.Array, ...]]:
        """Function of (model, images, boxes, [captions], rng).

        It returns the embeddings of the regions and of the whole image (B, (N + 1) D), those of the
        regions by the teacher (B, N D), and those of the captions (B, D).
        """
        inputs, theirs = self.context.spec.inputs, self.teacher.spec.inputs

        def embed(model: Any, *arrays: Any) -> tuple[jax.Array, ...]:
            images, boxes, *captions, rng = arrays
            pixels = inputs.normalize(images)
            image_rng, text_rng = (None, None) if rng is None else jax.random.split(rng)
            whole = jnp.broadcast_to(jnp.asarray([0.5, 0.5, 1.0, 1.0]), (len(boxes), 1, 4))
            both = jnp.concatenate([boxes, whole], axis=1)
            own = model.encode_regions(pixels, both, normalize=True, rng=image_rng)
            taught = self.teacher.model.bind(teacher).encode_regions(
                theirs.renormalize(pixels, inputs), boxes, normalize=True
            )
            found = [own.reshape(len(own), -1)]
            found.append(jax.lax.stop_gradient(taught.reshape(len(taught), -1)))
            for tokens in captions:
                found.append(model.encode_text(tokens, normalize=True, rng=text_rng))
            return tuple(found)

        return embed

    def _embed_texts(
        self, params: Params, texts: Sequence[str]
    ) -> Float32[np.ndarray, "texts dim"]:
        """Embeddings of texts by the teacher, the same on every process."""
        tokens = self.context.tokenize(texts)
        model, mesh = self.teacher.model, self.context.mesh
        sharding = None if mesh is None else replicated(mesh)

        def embed(params: Params, tokens: jax.Array) -> jax.Array:
            with contextlib.nullcontext() if mesh is None else tracing_for(model, mesh):
                return model.bind(params).encode_text(tokens, normalize=True)

        compiled = jax.jit(embed, out_shardings=sharding)
        size, rows = min(_PROMPTS_AT_ONCE, len(tokens)), []
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            padded = np.pad(part, ((0, size - len(part)), (0, 0)), mode="edge")
            rows.append(np.asarray(compiled(params, padded))[: len(part)])
        return np.concatenate(rows)


def region_losses(
    logits: Float[Array, "batch n concepts"],
    teacher_logits: Float[Array, "batch n concepts"],
    valid: Bool[Array, "batch n"],
    threshold: float,
) -> tuple[Metrics, Metrics]:
    """Mean losses of the regions of a batch that have a pseudo label.

    Args:
        logits: logits of the concepts by the model (B, N, C).
        teacher_logits: the same by the teacher.
        valid: whether a region exists (B, N).
        threshold: probability that a pseudo label exceeds.

    Returns:
        Losses `contrastive` and `distillation`, 0 for a batch without regions; and metrics; see
        `RegionText`.
    """
    log_own = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_taught = jax.nn.log_softmax(teacher_logits.astype(jnp.float32))
    label = jnp.argmax(log_taught, axis=-1)
    confident = valid & (jnp.exp(jnp.max(log_taught, axis=-1)) > threshold)
    kept = jnp.where(jnp.any(confident), confident, valid)
    count = jnp.maximum(jnp.sum(kept), 1)
    one_hot = jax.nn.one_hot(label, logits.shape[-1]) * kept[..., None]
    of_concept = jnp.sum(one_hot, axis=(0, 1))

    # The softmax over the concepts of all regions is one over concepts, weighted by their number.
    occurs = of_concept > 0
    log_count = jnp.log(jnp.maximum(of_concept, 1))
    weighted = jnp.where(occurs, log_own + log_count, jnp.finfo(jnp.float32).min)
    contrast = jax.nn.logsumexp(weighted, axis=-1) - jnp.sum(
        one_hot * jnp.where(occurs, weighted, 0), axis=-1
    )
    divergence = jnp.sum(jnp.exp(log_taught) * (log_taught - log_own), axis=-1)
    agree = jnp.argmax(log_own, axis=-1) == label
    return {
        "contrastive": jnp.sum(contrast, where=kept) / count,
        "distillation": jnp.sum(divergence, where=kept) / count,
    }, {
        "kept": jnp.sum(kept) / jnp.maximum(jnp.sum(valid), 1),
        "agreement": jnp.sum(agree & kept) / count,
        "concepts": jnp.sum(occurs),
    }


def read_concepts(path: str) -> list[str]:
    """Reads a list of concepts.

    Args:
        path: text file with one concept per line, local or in a bucket; empty lines and repeated
            concepts are left out.

    Raises:
        UserError: no such file, one that is not UTF-8, or fewer than two concepts.
    """
    file = as_path(path)
    if not file.is_file():
        raise UserError(
            f"config.objective.concepts={path!r}: expected a text file with one concept per line"
        )
    try:
        lines = file.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text: {error}") from error
    concepts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(concepts) < 2:
        raise UserError(f"{path}: expected at least 2 concepts; found {len(concepts)}")
    return concepts


def _check_config(config: RegionText.Config) -> None:
    for name in ("contrastive_weight", "distillation_weight", "image_text_weight"):
        check_range(name, getattr(config, name))
    if config.temperature <= 0:
        raise UserError(
            f"config.objective.temperature={config.temperature}: expected a positive number"
        )
    if not 0 <= config.concept_threshold < 1:
        raise UserError(
            f"config.objective.concept_threshold={config.concept_threshold}: expected a number of "
            "at least 0, below 1"
        )
    if not config.templates or any(t.count("{}") != 1 for t in config.templates):
        raise UserError(
            f"config.objective.templates={config.templates!r}: expected prompt templates with "
            "exactly one {}"
        )
    if not (config.teacher_weights or config.teacher_model):
        raise UserError(
            "config.objective.name='region_text' needs a teacher: set "
            "config.objective.teacher_weights, as RN50.pt, and config.objective.teacher_model, as "
            "regionclip_rn50"
        )


def _check_model(module: Any, title: str) -> None:
    if not hasattr(module, "encode_regions") or not hasattr(module, "encode_text"):
        raise UserError(
            "config.objective.name='region_text' compares regions with texts: it needs a "
            f"classifier of boxes, as regionclip_rn50; found {title}"
        )
