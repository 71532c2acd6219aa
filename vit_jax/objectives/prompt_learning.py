"""Classification by the texts of class names, as prompts are learned (Zhou et al. 2022, CoOp)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from vit_jax.data.examples import check_templates
from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.objectives.base import Batch, Context, Metrics, Objective, mean_over_examples
from vit_jax.objectives.contrastive.logits import pair_logits
from vit_jax.objectives.contrastive.objective import is_dual_encoder
from vit_jax.parallel.mesh import batch_sharding

# ImageNet's number: the size of a plan, for which no data are opened.
_PLANNED_CLASSES = 1000


class PromptLearning(Objective):
    """Cross-entropy of images over the texts of all classes of the training source (section 3.2).

    A text tower with `prompt_length` learned vectors and all else frozen is CoOp with a unified
    context; with `prompt_classes`, the number of classes, its contexts are class-specific. Their
    texts are then the only ones that the model reads. Texts are embedded once per step, split over
    the devices. A bias of logits cancels.

    Metrics: `accuracy`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective.

        Attributes:
            template: text of a class, with one `{}` for its name. Learned vectors stand around it
                as `config.model.text.class_position` says; those of the authors' code come before a
                final full stop, here all words of the text stay together.
        """

        template: str = "{}"

    config: Config
    fields = ("image", "label")

    def __init__(self, config: Config, context: Context):
        """Checks that the model embeds images and texts.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: another kind of model, or a template without exactly one `{}`.
        """
        super().__init__(config, context)
        check_templates((config.template,))
        if not is_dual_encoder(context.module):
            raise UserError(
                "config.objective.name='prompt_learning' compares images with class names: it "
                f"needs a dual encoder, as clip_vit_b16; found {context.architecture_name}"
            )

    @functools.cached_property
    def _names(self) -> list[str] | None:
        names = self.context.class_names()
        return None if names is None else list(names)

    @property
    def _count(self) -> int:
        if self._names is not None:
            return len(self._names)
        text = self.context.spec.architecture.text
        return getattr(text, "prompt_classes", 0) or _PLANNED_CLASSES

    @property
    def abstract_constants(self) -> tuple[Params, ...]:  # type: ignore[override]
        """`ShapeDtypeStruct` of the tokens of the classes, padded for the devices."""
        mesh, shards = self.context.mesh, self.context.microbatches.shards
        shape = (
            -(-self._count // shards) * shards,
            self.context.spec.architecture.text.context_length,
        )
        sharding = None if mesh is None else batch_sharding(mesh)
        return ({"tokens": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)},)

    def load_constants(self) -> tuple[Params, ...]:
        """Tokenizes the texts of the classes."""
        if self._names is None:
            raise UserError("config.data.train has no classes: expected a source with labels")
        tokens = self.context.tokenize([self.config.template.format(x) for x in self._names])
        (abstract,) = self.abstract_constants
        shape, sharding = abstract["tokens"].shape, abstract["tokens"].sharding
        rows = np.pad(tokens, ((0, shape[0] - len(tokens)), (0, 0)), mode="edge")
        if sharding is None:
            return ({"tokens": jnp.asarray(rows)},)
        placed: Any = jax.make_array_from_callback(shape, sharding, lambda index: rows[index])
        return ({"tokens": placed},)

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch of `image` and `label` (B,), see `Objective`."""

        def embed(model: Any, images: jax.Array, rng: jax.Array | None) -> tuple[jax.Array, ...]:
            pixels = self.context.spec.inputs.normalize(images)
            return (model.encode_image(pixels, normalize=True, rng=rng),)

        (images,) = self.context.microbatches.run(embed, model, (batch["image"],), rng)
        texts = model.encode_text(constants[0]["tokens"], normalize=True)
        scale, _ = model.logit_parameters()
        logits = pair_logits(images, texts, scale, jnp.zeros(()))
        # Classes beyond the last one fill the rows of the devices.
        exists = jnp.arange(len(texts)) < self._count
        logits = jnp.where(exists, logits, jnp.finfo(jnp.float32).min)
        label, weight = batch["label"], batch.get("weight")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        correct = jnp.argmax(logits, axis=1) == label
        return mean_over_examples(losses, weight), {"accuracy": mean_over_examples(correct, weight)}
