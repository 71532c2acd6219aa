"""Distillation of dual encoders: open_clip's and MobileCLIP's (Vasu et al. 2024, section 3)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vit_jax.components import parse
from vit_jax.data.examples import OtherTokens
from vit_jax.data.tokenizers import TRAINED, open_tokenizer
from vit_jax.errors import UserError, check_name
from vit_jax.models.definition import Params
from vit_jax.models.spec import ModelSpec
from vit_jax.objectives.base import Batch, Context, FrozenModel, Metrics, check_range
from vit_jax.objectives.contrastive.gathered import gathered_logits
from vit_jax.objectives.contrastive.objective import Contrastive, is_dual_encoder
from vit_jax.pretrained.folder_tokenizer import FILE_KINDS

DIVERGENCES = ("cross_entropy", "kl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Keys of a teacher.

    Attributes:
        weights: weight file of any known format, or workdir of an earlier run.
        model: registered model of the teacher, where the weights do not name it.
        tokenizer: spec of the teacher's tokenizer, where the weights do not state its file.
        temperature: divisor of the teacher's cosine similarities; 0: the teacher's own.
    """

    weights: str = ""
    model: str = ""
    tokenizer: str = ""
    temperature: float = 0.0


class ContrastiveDistillation(Contrastive):
    """Weighted sum of a contrastive loss and of the divergence from frozen dual encoders.

    A teacher compares all images of the global batch with all captions. The student follows each
    row and each column of the softmax of these similarities: `DistillClipLoss` of open_clip, with
    "cross_entropy", and affinity mimicking of MobileCLIP, with "kl". The two differ by the entropy
    of the teacher, and have one gradient.

    Teachers see the images of the student, after augmentation, on the devices: in their own
    normalisation, and resized to their own size (bicubic, with antialiasing; the aspect ratio
    becomes theirs). They read the captions of the student, each in the same template: those with
    its tokenizer and length of texts its tokens, others their own, which are a field of the batch
    per tokenizer and length.

    Metrics: those of `contrastive`, `contrastive_loss` and `distillation_loss`, unweighted, and
    `teacher_accuracy`, the fraction of images for which a teacher finds the caption in the batch.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Contrastive.Config):
        """Keys of the objective, besides those of `contrastive`; the weights are open_clip's.

        Attributes:
            teachers: label of each teacher -> its keys: `weights`, a weight file of any known
                format or the workdir of an earlier run; `model`, the registered model where the
                weights do not name it; `tokenizer`, its tokenizer where the weights do not state
                the file, as gemma:FILE; `temperature`, the divisor of the teacher's cosine
                similarities, by default its own. The loss is the mean over teachers.
            divergence: "cross_entropy" (open_clip) or "kl" (MobileCLIP).
            contrastive_weight: weight of the contrastive loss; 1 - lambda in MobileCLIP.
            distillation_weight: weight of the divergence; lambda in MobileCLIP, where it is 0.7 or
                1.
        """

        teachers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
        divergence: str = "cross_entropy"
        contrastive_weight: float = 1.0
        distillation_weight: float = 1.0

        def __post_init__(self) -> None:
            """Completes the keys of the teachers with their defaults."""
            full = {
                label: dataclasses.asdict(_parse(label, x)) for label, x in self.teachers.items()
            }
            object.__setattr__(self, "teachers", full)

    config: Config
    takes_several_captions = False

    def __init__(self, config: Config, context: Context):
        """Opens the teachers, without reading their parameters.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: an invalid key, no teacher, or one that is no dual encoder or whose tokenizer
                cannot be opened.
        """
        super().__init__(config, context)
        check_name(config.divergence, DIVERGENCES, "config.objective.divergence,")
        check_range("contrastive_weight", config.contrastive_weight)
        check_range("distillation_weight", config.distillation_weight)
        if config.form != "gathered":
            raise UserError(
                f"config.objective.form={config.form!r}: rows of the teachers' similarities are "
                "compared as a whole, expected 'gathered'"
            )
        if not config.teachers:
            raise UserError(
                f"{_PATH} is empty: expected dual encoders, as {_PATH}.NAME.weights=FILE"
            )
        keys = {label: _parse(label, block) for label, block in config.teachers.items()}
        self._temperatures = [each.temperature for each in keys.values()]
        self._teachers = [_open(label, each, context) for label, each in keys.items()]
        read = [
            _tokens_of(label, each, teacher.spec, context)
            for (label, each), teacher in zip(keys.items(), self._teachers, strict=True)
        ]
        self._tokens_of_teachers = [name for name, _ in read]
        self.other_tokens = {name: tokens for name, tokens in read if tokens is not None}

    @property
    def fields(self) -> tuple[str, ...]:  # type: ignore[override]
        """Fields of a batch that are read: images, and tokens of each tokenizer."""
        return (*super().fields, *self.other_tokens)

    @property
    def abstract_constants(self) -> tuple[Params, ...]:  # type: ignore[override]
        """`ShapeDtypeStruct`s of the teachers' parameters."""
        return tuple(teacher.abstract for teacher in self._teachers)

    def load_constants(self) -> tuple[Params, ...]:
        """Reads the teachers' parameters."""
        return tuple(teacher.load() for teacher in self._teachers)

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch of `image`, and of tokens (B, length)."""
        config, arrays = self.config, tuple(batch[name] for name in self.fields)
        images, texts, *taught = self.context.microbatches.run(
            self._embedding_by(constants), model, arrays, rng
        )
        contrast, metrics = self.compare(model, images, texts)
        scale, _ = model.logit_parameters()
        found = [
            self._follow(images, texts, scale, *theirs)
            for theirs in zip(taught[::2], taught[1::2], self._scales(constants), strict=True)
        ]
        distillation, accuracy = (sum(x) / len(found) for x in zip(*found, strict=True))
        loss = config.contrastive_weight * contrast + config.distillation_weight * distillation
        return loss, {
            **metrics,
            "contrastive_loss": contrast,
            "distillation_loss": distillation,
            "teacher_accuracy": accuracy,
        }

    def _embedding_by(self, constants: tuple[Params, ...]) -> Callable[..., tuple[jax.Array, ...]]:
        """Function of (model, images, tokens, *other tokens, rng).

        It returns the embeddings of images and texts by the student, then by each teacher.
        """
        inputs = self.context.spec.inputs

        def embed(model: Any, images: jax.Array, *arrays: Any) -> tuple[jax.Array, ...]:
            *texts, rng = arrays
            tokens = dict(zip(self.fields[1:], texts, strict=True))
            pixels, taught = inputs.normalize(images), []
            for teacher, params, name in zip(
                self._teachers, constants, self._tokens_of_teachers, strict=True
            ):
                module, theirs = teacher.model.bind(params), teacher.spec.inputs
                seen = theirs.renormalize(pixels, inputs)
                if theirs.size != inputs.size and not inputs.is_naflex:
                    seen = jax.image.resize(seen, (len(seen), *theirs.size, 3), "bicubic")
                taught.append(module.encode_image(seen, normalize=True))
                taught.append(module.encode_text(tokens[name], normalize=True))
            own = self._embed(model, images, tokens["tokens"], rng)
            return (*own, *jax.lax.stop_gradient(tuple(taught)))

        return embed

    def _scales(self, constants: tuple[Params, ...]) -> list[jax.Array]:
        """Factors of the teachers' cosine similarities."""
        parts = zip(self._temperatures, self._teachers, constants, strict=True)
        return [
            jnp.float32(1 / temperature)
            if temperature
            else jax.lax.stop_gradient(teacher.model.bind(params).logit_parameters()[0])
            for temperature, teacher, params in parts
        ]

    def _follow(
        self,
        images: jax.Array,
        texts: jax.Array,
        scale: jax.Array,
        their_images: jax.Array,
        their_texts: jax.Array,
        their_scale: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Divergence from one teacher and the teacher's accuracy."""
        axes: dict[str, Any] = {"mesh": self.context.mesh, "batch_axes": self.context.batch_axes}

        # A bias is in all logits of a row and cancels. Logits are computed again in the backward
        # pass, so that those of one teacher exist at a time.
        @jax.checkpoint
        def compare(
            images: jax.Array, texts: jax.Array, scale: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            zero = jnp.zeros(())
            own = gathered_logits(images, texts, scale, zero, **axes)
            theirs = gathered_logits(their_images, their_texts, their_scale, zero, **axes)
            correct = jnp.argmax(theirs, axis=1) == jnp.arange(len(theirs))
            loss = affinity_loss(own, theirs, self.config.divergence)
            return loss, jnp.mean(correct, dtype=jnp.float32)

        return compare(images, texts, scale)


def affinity_loss(
    logits: Float[Array, "images texts"],
    teacher_logits: Float[Array, "images texts"],
    divergence: str,
) -> Float[Array, ""]:
    """Mean divergence of the softmax of rows and of columns from a teacher's.

    Args:
        logits: float32 logits of the student.
        teacher_logits: float32 logits of the teacher, which get no gradient.
        divergence: "cross_entropy" or "kl", KL(teacher || student).
    """
    teacher_logits, total = jax.lax.stop_gradient(teacher_logits), jnp.zeros(())
    for axis in (1, 0):
        log_student = jax.nn.log_softmax(logits, axis)
        log_teacher = jax.nn.log_softmax(teacher_logits, axis)
        difference = log_teacher - log_student if divergence == "kl" else -log_student
        total += jnp.mean(jnp.sum(jnp.exp(log_teacher) * difference, axis))
    return total / 2


_PATH = "config.objective.teachers"


def _parse(label: str, block: Any) -> TeacherConfig:
    if not isinstance(block, Mapping):
        raise UserError(f"{_PATH}.{label}={block!r}: expected the keys of a teacher")
    return parse(TeacherConfig, block, f"{_PATH}.{label}")


def _open(label: str, keys: TeacherConfig, context: Context) -> FrozenModel:
    path = f"{_PATH}.{label}"
    if not (keys.weights or keys.model):
        raise UserError(
            f"{path}: expected weights, a weight file or the workdir of a run, and model where the "
            "weights do not name it"
        )
    if keys.temperature < 0:
        raise UserError(f"{path}.temperature={keys.temperature}: expected 0 or more")
    teacher = context.open_model(keys.weights, keys.model)
    model, title = teacher.model, f"the teacher {keys.weights or keys.model}"
    if not is_dual_encoder(model.bind(model.shapes())):
        found = type(teacher.spec.architecture).__name__
        raise UserError(f"{title}: expected a dual encoder, as clip_vit_b16; found {found}")
    teacher.spec.inputs.check_renormalized(context.spec.inputs)
    return teacher


def _tokens_of(
    label: str, keys: TeacherConfig, teacher: ModelSpec, context: Context
) -> tuple[str, OtherTokens | None]:
    """Field of a batch that a teacher reads as text, and what it is if not the student's own."""
    own, text = context.tokenizer(), teacher.architecture.text
    spec, length = keys.tokenizer or teacher.tokenizer, text.context_length
    name = f"tokens/{spec}/{length}"
    if own is None:  # to plan a run, sizes are compared
        student = context.spec.architecture.text
        same = (student.vocab_size, student.context_length) == (text.vocab_size, length)
        return ("tokens", None) if same else (name, OtherTokens(length, None))
    if spec in (None, TRAINED, *FILE_KINDS):
        file = f"{spec}:FILE" if spec in FILE_KINDS else "saved:RUN, clip or sentencepiece:FILE"
        raise UserError(
            f"the weights of the teacher {keys.weights or keys.model} do not state the file of its "
            f"tokenizer: set {_PATH}.{label}.tokenizer, as {file}"
        )
    theirs = open_tokenizer(spec, vocab_size=text.vocab_size, context_length=length)
    return ("tokens", None) if own.is_same(theirs) else (name, OtherTokens(length, theirs))
