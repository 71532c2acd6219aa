"""Masks of prompts by binary cross-entropy (Lüddecke and Ecker 2022, CLIPSeg, section 4)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.objectives.base import Batch, Context, Metrics, Objective
from vit_jax.objectives.mask_losses import mask_iou


class CLIPSeg(Objective):
    """Learns which cells of an image belong to each of its prompts.

    The loss is the binary cross-entropy of a cell, averaged over the valid cells of all prompts of
    the global batch. The mask of a prompt that the image does not show is empty; such prompts are
    the negatives of the batch (`config.data.detection.negatives`), whose cells have a weight of
    their own. A cell is a square of `config.data.detection.mask_stride` pixels, whose logit is the
    mean over its pixels; the published loss has stride 1. Freeze the towers by
    `config.optim.freeze`.

    Prompts are texts. The authors mix embeddings of texts with those of example images at random
    (section 3.3), and their decoder has dropout; neither is done here.

    Metrics: `iou`, the mean over prompts that the image shows, with cells above a probability of
    1/2; `false_cells`, the mean fraction of such cells for prompts that it does not show;
    `prompts_per_image`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective.

        Attributes:
            negative_weight: weight of the cells of prompts that the image does not show, in the
                mean. A negative per positive with weight p / (1 - p) is, in expectation, a negative
                in place of the positive with probability p, as the authors draw them.
        """

        negative_weight: float = 1.0

    fields = ("image", "tokens", "query_masks", "valid")
    is_mean_over_examples = False

    def __init__(self, config: Config, context: Context):
        """Checks that the model makes masks of prompts.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: a model without the method `masks_of`, or a negative weight.
        """
        super().__init__(config, context)
        if config.negative_weight < 0:
            raise UserError(
                f"config.objective.negative_weight={config.negative_weight}: expected 0 or more"
            )
        if not hasattr(context.module, "masks_of"):
            raise UserError(
                "config.objective.name='clipseg' learns masks of prompts: it needs a segmenter, as "
                f"clipseg_rd64; found {context.architecture_name}"
            )

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch.

        Args:
            model: segmenter.
            batch: `image`, packed; `tokens` (B, C, T), the prompts of each image, then zeros;
                `query_masks` (B, C, h, w), the cells of each prompt; `valid` (B, h, w), cells that
                count.
            rng: key for the model; None for evaluation mode.
            *constants: not used.
        """
        arrays = tuple(batch[field] for field in self.fields)
        (sums,) = self.context.microbatches.run(self._sums, model, arrays, rng)
        loss, weight, iou, shown, false_cells, absent = jnp.sum(sums, axis=0)
        metrics = {
            "iou": iou / jnp.maximum(shown, 1),
            "false_cells": false_cells / jnp.maximum(absent, 1),
            "prompts_per_image": (shown + absent) / len(sums),
        }
        return loss / jnp.where(weight > 0, weight, 1), metrics

    def _sums(
        self,
        model: Any,
        images: jax.Array,
        tokens: Int[Array, "batch prompts length"],
        masks: Bool[Array, "batch prompts rows columns"],
        valid: Bool[Array, "batch rows columns"],
        rng: jax.Array | None,
    ) -> tuple[Float[Array, "batch 6"]]:
        """Sums over the prompts of each image: loss, weight, IoU, and the rest of the metrics."""
        found = model(self.context.spec.inputs.normalize(images), tokens, rng=rng)["masks"]
        logits = cells_of(found, masks.shape[2:])
        exist = tokens[..., 0] > 0
        counted = valid[:, None] & exist[..., None, None]
        losses = optax.sigmoid_binary_cross_entropy(logits, masks.astype(jnp.float32))
        loss = jnp.sum(losses, axis=(2, 3), where=counted)
        cells = jnp.sum(counted, axis=(2, 3))
        shown = exist & jnp.any(masks & counted, axis=(2, 3))
        above = (logits > 0) & counted
        iou = jnp.where(shown, mask_iou(above, masks, counted), 0)
        absent = exist & ~shown
        weight = jnp.where(absent, self.config.negative_weight, 1.0)
        false_cells = jnp.where(absent, jnp.sum(above, axis=(2, 3)) / jnp.maximum(cells, 1), 0)
        of_prompts = [weight * loss, weight * cells, iou, shown, false_cells, absent]
        return (jnp.stack([jnp.sum(x, axis=1, dtype=jnp.float32) for x in of_prompts], axis=1),)


def cells_of(
    logits: Float[Array, "batch prompts height width"], grid: tuple[int, ...]
) -> Float[Array, "batch prompts rows columns"]:
    """Averages logits over equal cells.

    Args:
        logits: logits of pixels.
        grid: rows and columns of cells, which divide height and width.
    """
    rows, columns = grid
    batch, prompts, height, width = logits.shape
    squares = logits.reshape(batch, prompts, rows, height // rows, columns, width // columns)
    return jnp.mean(squares, axis=(3, 5))
