"""Boxes aligned with the phrases of captions (Liu et al. 2023, Grounding DINO, section 3.5)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.objectives.base import Batch, Context, Metrics, Objective
from vit_jax.objectives.set_prediction import Outputs, SetConfig, Sums, set_losses


class Grounding(Objective):
    """Matches each annotated box with one query, and learns its phrase and its place.

    The loss is the sum of the losses of the selected proposals and of all layers of the decoder,
    each with a matching of its own. Each of them is the sum of the terms below over all images,
    divided by the number of boxes of all images, or by 1 if there are none.

    - Alignment: focal sigmoid loss of every query with every token of its caption. The target is 1
      for a matched query and the tokens of its box's phrase, otherwise 0 (GLIP, Li et al. 2022,
      section 3.1). Padding has no loss.
    - Boxes: L1 distance and 1 - GIoU of each matched pair, as fractions of the image.

    A query is matched at the lowest total cost, see `set_prediction.set_losses`. Queries with noise
    (DINO's denoising) are not used, as in the code that the authors published.

    Metrics, of the last layer except for one: `class_loss`, `l1_loss` and `giou_loss`, unweighted;
    `accuracy`, the fraction of matched queries whose best token is one of their box's phrase;
    `iou`, the mean over matched pairs; `boxes_per_image`; `unmatched`, the fraction of boxes for
    which no query is left; and `selection_loss`, the weighted loss of the selected proposals.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SetConfig):
        """Keys of the objective; the defaults are those of the authors."""

        class_weight: float = 2.0
        l1_weight: float = 5.0
        giou_weight: float = 2.0

    fields = ("image", "sizes", "tokens", "boxes", "positive_map")
    is_mean_over_examples = False

    def __init__(self, config: Config, context: Context):
        """Checks that the model reads captions.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: another kind of model, inputs that show a part of the image, or a weight that
                is not in its range.
        """
        super().__init__(config, context)
        config.check()
        reads = hasattr(context.module, "embed_caption")
        if not (reads and hasattr(context.spec.architecture, "decoder_depth")):
            raise UserError(
                "config.objective.name='grounding' needs a model whose decoder refines boxes by a "
                f"caption, as grounding_dino_tiny; found {context.architecture_name}"
            )
        context.spec.inputs.extent(*context.spec.inputs.size)

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch.

        Args:
            model: detector that reads a caption per image.
            batch: `image`, packed; `sizes` (B, 2), height and width of the image without its
                padding, px; `tokens` (B, T), a caption, then zeros; `boxes` (B, N, 4), cxcywh as
                fractions of the image, padded; `positive_map` (B, N, T), the tokens of the phrase
                of each box, none for padding.
            rng: key for the model; None for evaluation mode.
            *constants: not used.
        """
        arrays = (batch["image"], batch["sizes"], batch["tokens"])
        boxes, logits = self.context.microbatches.run(self._predict, model, arrays, rng)
        images, length = batch["tokens"].shape
        boxes = boxes.reshape(images, self._layers, -1, 4)
        logits = logits.reshape(*boxes.shape[:3], length)
        sums = layer_losses(
            {"boxes": boxes, "logits": logits},
            batch["boxes"],
            batch["positive_map"],
            batch["tokens"] != 0,
            self.config,
        )
        by_layer = [jax.tree.map(lambda x, i=i: x[:, i], sums) for i in range(self._layers)]
        totals = [self.config.total(each.means()[0]) for each in by_layer]
        losses, metrics = by_layer[-1].means()
        metrics |= {f"{name}_loss": x for name, x in losses.items()}
        return sum(totals[1:], totals[0]), {**metrics, "selection_loss": totals[0]}

    @property
    def _layers(self) -> int:
        """Number of predictions of a query: as a proposal, and after each layer of the decoder."""
        return 1 + self.context.spec.architecture.decoder_depth

    def _predict(
        self,
        model: Any,
        images: jax.Array,
        sizes: jax.Array,
        tokens: jax.Array,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Boxes and logits of all layers in one row per image."""
        pixels = self.context.spec.inputs.normalize(images)
        found = model.predict(pixels, tokens, sizes=sizes, rng=rng)
        pairs = (found.selected_boxes, found.boxes), (found.selected_logits, found.logits)
        boxes, logits = (
            jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, 1).reshape(len(images), -1)
            for first, rest in pairs
        )
        return boxes, logits


def layer_losses(
    outputs: Outputs,
    boxes: Float[Array, "batch n 4"],
    positive_map: Bool[Array, "batch n length"],
    tokens: Bool[Array, "batch length"],
    config: SetConfig,
) -> Sums:
    """Matches and sums up the losses of each layer.

    Args:
        outputs: `boxes` (B, L, Q, 4), cxcywh, and `logits` (B, L, Q, T) of L layers.
        boxes: annotated boxes (B, N, 4), cxcywh.
        positive_map: tokens of the phrase of each box (B, N, T), none for padding.
        tokens: whether each token exists (B, T).
        config: keys of the objective.

    Returns:
        Sums of each image and layer (B, L).
    """
    images, layers = outputs["boxes"].shape[:2]
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in outputs.items()}
    boxes, positive_map, tokens = (
        jnp.repeat(x, layers, axis=0) for x in (boxes, positive_map, tokens)
    )
    sums = set_losses(flat, boxes, positive_map, tokens, config)
    return jax.tree.map(lambda x: x.reshape(images, layers), sums)
