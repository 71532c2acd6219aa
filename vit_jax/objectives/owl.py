"""Set prediction with text queries (Minderer et al. 2022, OWL-ViT, section 3.2; 2023, OWLv2)."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.objectives.base import Batch, Context, Metrics, Objective
from vit_jax.objectives.set_prediction import SetConfig, set_losses


class Owl(Objective):
    """Matches each annotated box with one prediction, and learns its class and its place.

    The loss of the global batch is the sum of the terms below over all images, divided by the
    number of boxes of all images, or by 1 if there are none.

    - Classification: focal sigmoid loss of every query with every prompt of its image. The target
      is 1 for a matched query and the prompt of its box, otherwise 0. The prompts of an image are
      the names in it and sampled negatives; padding has no loss.
    - Boxes: L1 distance and 1 - GIoU of each matched pair, in units of the model's input.
    - Objectness, for models that predict it (OWLv2). Its loss has not been published. Here it is
      the same focal loss, with target 1 for matched queries and 0 for others.

    A query is matched at the lowest total cost, see `set_prediction.set_losses`. Scenic's recipes
    divide the terms of each image by its own number of boxes instead, and clip gradients per image.

    Metrics: `class_loss`, `l1_loss`, `giou_loss` and `objectness_loss`, unweighted; `accuracy`, the
    fraction of matched queries whose best prompt is that of their box; `iou`, the mean over matched
    pairs; `boxes_per_image`; and `unmatched`, the fraction of boxes for which no query is left.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SetConfig):
        """Keys of the objective; the defaults are those of scenic's recipes.

        Attributes:
            objectness_weight: weight of the objectness loss, for models that predict it.
        """

        objectness_weight: float = 1.0
        focal_alpha: float = 0.3

    fields = ("image", "tokens", "boxes", "labels")
    is_mean_over_examples = False

    def __init__(self, config: Config, context: Context):
        """Checks that the model detects.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: a model without the method `detect`, inputs that show a part of the image,
                or a weight that is not in its range.
        """
        super().__init__(config, context)
        config.check()
        if not hasattr(context.module, "detect"):
            raise UserError(
                "config.objective.name='owl' learns boxes: it needs a detector, as "
                f"owlvit_base_patch32; found {context.architecture_name}"
            )
        context.spec.inputs.extent(*context.spec.inputs.size)

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch.

        Args:
            model: detector.
            batch: `image`, packed; `tokens` (B, C, T), the prompts of each image, then zeros;
                `boxes` (B, N, 4), cxcywh as fractions of the model's input, padded; `labels`
                (B, N), the prompt of each box, -1 for padding.
            rng: key for the model; None for evaluation mode.
            *constants: not used.
        """
        arrays = (batch["image"], batch["tokens"])
        flat = self.context.microbatches.run(self._predict, model, arrays, rng)
        (images, prompts), names = batch["tokens"].shape[:2], ("boxes", "logits", "objectness")
        queries = flat[0].shape[1] // 4
        shapes = ((images, queries, 4), (images, queries, prompts), (images, queries))
        outputs = {
            name: x.reshape(shape) for name, shape, x in zip(names, shapes, flat, strict=False)
        }
        of_box = jax.nn.one_hot(batch["labels"], prompts, dtype=bool)
        exist = batch["tokens"][:, :, 0] != 0
        losses, metrics = set_losses(outputs, batch["boxes"], of_box, exist, self.config).means()
        metrics |= {f"{name}_loss": x for name, x in losses.items()}
        return self.config.total(losses), metrics

    def _predict(
        self, model: Any, images: jax.Array, tokens: jax.Array, rng: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        """Outputs of the model in one row per image: boxes, logits, and objectness if there is."""
        outputs = model(self.context.spec.inputs.normalize(images), tokens, rng=rng)
        names = [name for name in ("boxes", "logits", "objectness") if name in outputs]
        return tuple(outputs[name].reshape(len(images), -1) for name in names)
