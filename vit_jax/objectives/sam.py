"""Interactive segmentation (Kirillov et al. 2023, SAM, section 3 and appendix A)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from vit_jax.errors import UserError
from vit_jax.models.definition import Params
from vit_jax.models.layers.stacking import apply_stack
from vit_jax.models.sam.prompts import (
    BACKGROUND,
    FOREGROUND,
    LOWER_RIGHT,
    NO_POINT,
    UPPER_LEFT,
)
from vit_jax.objectives.base import Batch, Context, Metrics, Objective
from vit_jax.objectives.focal import FocalConfig
from vit_jax.objectives.interaction import (
    boxes_around,
    corrective_points,
    noisy_boxes,
    pick_cells,
)
from vit_jax.objectives.mask_losses import dice_loss, mask_focal_loss, mask_iou

# Points (B, N, P, 2), their labels (B, N, P), and whether they are attended to (B, N, P).
Prompts = tuple[jax.Array, jax.Array, jax.Array]

_LOSSES = ("focal", "dice", "iou")
_EVALUATION_SEED = 0


class Sam(Objective):
    """Learns masks from simulated clicks and boxes, in several rounds per image.

    In the first round the prompt of a mask is a point of it or, with the same probability, its box
    with noise. In each of the next rounds a point of the error region is added, and the logits of
    the round before are given back, without a gradient. In one further round at a random place and
    in one at the end nothing is added but these logits.

    All rounds have one shape, so that those after the first are compiled once: there are tokens for
    all points from the start, and those of later rounds are not attended to.

    - A point alone is ambiguous: of the masks for ambiguous prompts the one with the lowest focal
      and dice loss counts, and the one of the highest predicted IoU is given back.
    - Otherwise the mask for unambiguous prompts counts. SAM's paper counts a box alone among the
      ambiguous prompts; here it is not, as in SAM 2 (Ravi et al. 2024) and as SAM's authors use it.
    - Each mask that may count predicts its IoU, by the mean squared error.

    The loss is the mean over rounds of the sum of these terms over all masks, divided by the number
    of masks of the global batch. Cells outside of the image, and those that are not annotated,
    have no loss.

    Metrics: `focal_loss`, `dice_loss` and `iou_loss`, unweighted means; `first_iou` and `last_iou`,
    the IoU of the mask of the highest predicted IoU in the first and in the last round; and
    `masks_per_image`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(FocalConfig):
        """Keys of the objective; the defaults are those of the paper.

        Attributes:
            focal_weight: weight of the focal loss, a mean over cells.
            dice_weight: weight of the dice loss.
            iou_weight: weight of the squared error of the predicted IoU.
            points: corrective points, one per round.
            refine: whether there are two more rounds without a new point.
            box_fraction: probability that the first prompt of a mask is a box.
            box_noise: standard deviation of a corner of a box, as a fraction of the box's side.
            max_box_noise: largest shift of a corner, px of the model's input.
        """

        focal_weight: float = 20.0
        dice_weight: float = 1.0
        iou_weight: float = 1.0
        points: int = 8
        refine: bool = True
        box_fraction: float = 0.5
        box_noise: float = 0.1
        max_box_noise: float = 20.0

    fields = ("image", "sizes", "masks", "valid")
    is_mean_over_examples = False

    def __init__(self, config: Config, context: Context):
        """Checks that the model takes prompts.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: another kind of model, inputs that show a part of the image, or a key that is
                not in its range.
        """
        super().__init__(config, context)
        config.check()
        if config.box_fraction > 1:
            raise UserError(
                f"config.objective.box_fraction={config.box_fraction}: expected at most 1"
            )
        if not hasattr(context.module, "embed_prompts"):
            raise UserError(
                "config.objective.name='sam' learns masks from points and boxes: it needs a model "
                f"that takes them, as sam_vit_b; found {context.architecture_name}"
            )
        context.spec.inputs.extent(*context.spec.inputs.size)

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch.

        Args:
            model: SAM.
            batch: `image`, packed; `sizes` (B, 2), height and width of the image without its
                padding, px; `masks` (B, N, 4 h, 4 w) for features of h x w, empty for padding;
                `valid` (B, 4 h, 4 w), cells that count.
            rng: key for prompts and model; None for evaluation mode, with prompts of a fixed key.
            *constants: not used.

        Raises:
            UserError: masks of another size than the model's.
        """
        prompt_rng, model_rng = jax.random.key(_EVALUATION_SEED), None
        if rng is not None:
            prompt_rng, model_rng = jax.random.split(rng)
        arrays = tuple(batch[name] for name in self.fields)
        # Drawn for the whole batch, so that prompts do not depend on the microbatches.
        draws = self._draw(prompt_rng, batch["masks"].shape[:2])
        (sums,) = self.context.microbatches.run(self._predict, model, (*arrays, *draws), model_rng)
        *totals, masks = jnp.sum(sums, axis=0)
        names = (*(f"{name}_loss" for name in _LOSSES), "first_iou", "last_iou")
        metrics = dict(zip(names, jnp.stack(totals) / jnp.maximum(masks, 1), strict=True))
        loss = self.config.total({name: metrics[f"{name}_loss"] for name in _LOSSES})
        return loss, {**metrics, "masks_per_image": masks / len(batch["masks"])}

    @property
    def _clicks(self) -> int:
        """Tokens that rounds after the first add to the prompt."""
        return self.config.points + self.config.refine

    def _draw(self, rng: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
        """Random numbers of the prompts of B x N masks.

        Returns:
            Whether the first prompt is a box (B, N); which cell is the first point (B, N); noise of
            boxes (B, N, 4); which cells are the next points (B, N, clicks); and the round without a
            new point (B, N), 0 for none.
        """
        keys, clicks = jax.random.split(rng, 5), self._clicks
        idle = jax.random.randint(keys[4], shape, 1, clicks + 1)
        return (
            jax.random.uniform(keys[0], shape) < self.config.box_fraction,
            jax.random.uniform(keys[1], shape),
            jax.random.normal(keys[2], (*shape, 4)),
            jax.random.uniform(keys[3], (*shape, clicks)),
            idle if self.config.refine else jnp.zeros_like(idle),
        )

    def _predict(
        self,
        model: Any,
        images: jax.Array,
        sizes: jax.Array,
        targets: jax.Array,
        valid: jax.Array,
        boxed: jax.Array,
        start: jax.Array,
        shift: jax.Array,
        clicks: jax.Array,
        idle: jax.Array,
        rng: jax.Array | None,
    ) -> tuple[jax.Array]:
        """Sums over the masks of each image (B, 6): losses, IoU of two rounds, number of masks."""
        embedded = model.embed_image(self.context.spec.inputs.normalize(images), sizes, rng=rng)
        valid = jnp.broadcast_to(valid[:, None], targets.shape)
        targets = targets & valid
        prompts = self._first_prompts(targets, boxed, start, shift)
        found, scores = self._decode(model, embedded, prompts, None, targets)
        single = jnp.arange(found.shape[2]) == 0
        allowed = jnp.where(boxed[..., None], single, ~single)
        first, logits = self._compare(found, scores, targets, valid, allowed)
        graphdef, params = nnx.split(model)

        def click(carry: tuple[Prompts, jax.Array], step: Any) -> tuple[Any, jax.Array]:
            prompts, logits = carry
            noise, number = step
            added = (idle != number)[..., None] & (jnp.arange(prompts[1].shape[2]) == number + 1)
            prompts = self._correct(prompts, added, logits, targets, valid, noise)
            bound = nnx.merge(graphdef, params, copy=True)  # variables of the scan's own trace
            found, scores = self._decode(bound, embedded, prompts, logits, targets)
            only = jnp.ones((*targets.shape[:2], 1), bool)
            outcome, logits = self._compare(found[:, :, :1], scores[:, :, :1], targets, valid, only)
            return (prompts, logits), outcome

        count, scan = self._clicks + self.config.refine, self.context.model.execution["scan"]
        # The last round of `refine` adds no token: its number is that of none.
        noise = jnp.pad(jnp.moveaxis(clicks, -1, 0), ((0, self.config.refine), (0, 0), (0, 0)))
        steps = noise, jnp.arange(1, count + 1)
        _, later = apply_stack(click, (prompts, logits), steps, depth=count, scan=scan)
        rounds = jnp.concatenate([first[None], later])
        means = jnp.mean(rounds[:, :3], axis=0)
        exists = jnp.any(targets, axis=(2, 3))
        columns = jnp.stack([*means, rounds[0][3], rounds[-1][3], jnp.ones_like(means[0])], axis=-1)
        return (jnp.sum(columns, axis=1, where=exists[..., None]),)

    def _decode(
        self,
        model: Any,
        embedded: jax.Array,
        prompts: Prompts,
        logits: jax.Array | None,
        targets: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """See `decode`; with rematerialization the round is computed again in the backward pass."""
        execution = self.context.model.execution
        step: Any = decode if execution["remat"] == "none" else nnx.remat(decode)
        found, scores = step(model, embedded, prompts, logits)
        if found.shape[3:] != targets.shape[2:]:
            stride = self.context.spec.inputs.size[0] // found.shape[3]
            raise UserError(
                f"masks of {targets.shape[2:]} cells, the model predicts {found.shape[3:]}: "
                f"set config.data.detection.mask_stride={stride}"
            )
        return found, scores

    def _first_prompts(
        self, targets: jax.Array, boxed: jax.Array, start: jax.Array, shift: jax.Array
    ) -> Prompts:
        """Two tokens: the corners of a box, or a point and one without a position."""
        stride, size = self._stride(targets), self.context.spec.inputs.size
        boxes = noisy_boxes(
            boxes_around(targets) * stride,
            shift,
            scale=self.config.box_noise,
            most=self.config.max_box_noise,
            size=size,
        )
        point = self._pixels(pick_cells(targets, start), targets)
        point = jnp.concatenate([point, jnp.zeros_like(point)], axis=2)
        points = jnp.where(boxed[..., None, None], boxes.reshape(point.shape), point)
        kinds = jnp.asarray([UPPER_LEFT, LOWER_RIGHT]), jnp.asarray([FOREGROUND, NO_POINT])
        labels = jnp.where(boxed[..., None], *kinds)
        later = ((0, 0), (0, 0), (0, self._clicks))
        return (
            jnp.pad(points, (*later, (0, 0))),
            jnp.pad(labels, later, constant_values=NO_POINT),
            jnp.pad(jnp.ones(labels.shape, bool), later),
        )

    def _correct(
        self,
        prompts: Prompts,
        added: Bool[Array, "batch n points"],
        logits: jax.Array,
        targets: jax.Array,
        valid: jax.Array,
        noise: jax.Array,
    ) -> Prompts:
        """Makes the token that is `added` a point of the error region."""
        points, labels, present = prompts
        cells, inside = corrective_points(logits > 0, targets, valid, noise)
        label = jnp.where(inside, FOREGROUND, BACKGROUND)[..., None]
        return (
            jnp.where(added[..., None], self._pixels(cells, targets), points),
            jnp.where(added, label, labels),
            present | added,
        )

    def _stride(self, targets: jax.Array) -> jax.Array:
        """Pixels per cell along x, y, x, y."""
        size = self.context.spec.inputs.size
        down, across = (side / cells for side, cells in zip(size, targets.shape[2:], strict=True))
        return jnp.asarray([across, down] * 2, jnp.float32)

    def _pixels(self, cells: jax.Array, targets: jax.Array) -> jax.Array:
        """Pixels at the centres of cells (B, N, 2), counted from 0 (B, N, 1, 2)."""
        return ((cells + 0.5) * self._stride(targets)[:2] - 0.5)[:, :, None]

    def _compare(
        self,
        logits: Float[Array, "batch n masks height width"],
        scores: Float[Array, "batch n masks"],
        targets: Bool[Array, "batch n height width"],
        valid: Bool[Array, "batch n height width"],
        allowed: Bool[Array, "batch n masks"],
    ) -> tuple[Float[Array, "4 batch n"], Float[Array, "batch n height width"]]:
        """Losses of one round, and the logits that are given back.

        Args:
            logits: predicted masks of each prompt.
            scores: their predicted IoU.
            targets: right masks.
            valid: cells that count.
            allowed: predictions that may count.

        Returns:
            Focal loss, dice loss, squared error of the IoU, and the IoU of the prediction of the
            highest score; and the logits of that prediction.
        """
        config, shape = self.config, logits.shape
        wanted, counted = (jnp.broadcast_to(x[:, :, None], shape) for x in (targets, valid))
        focal = mask_focal_loss(
            logits, wanted, counted, alpha=config.focal_alpha, gamma=config.focal_gamma
        )
        dice, iou = dice_loss(logits, wanted, counted), mask_iou(logits > 0, wanted, counted)
        total = config.focal_weight * focal + config.dice_weight * dice
        lowest = jnp.argmin(jnp.where(allowed, total, jnp.inf), axis=2, keepdims=True)
        best = jnp.argmax(jnp.where(allowed, scores, -jnp.inf), axis=2, keepdims=True)
        of_lowest = [jnp.take_along_axis(x, lowest, axis=2)[..., 0] for x in (focal, dice)]
        error = jnp.mean((scores - iou) ** 2, axis=2, where=allowed)
        seen = jnp.take_along_axis(iou, best, axis=2)[..., 0]
        chosen = jnp.take_along_axis(logits, best[..., None, None], axis=2)[:, :, 0]
        return jnp.stack([*of_lowest, error, seen]), jax.lax.stop_gradient(chosen)


def decode(
    model: Any,
    embedded: Float[Array, "batch rows columns channels"],
    prompts: Prompts,
    masks: Float[Array, "batch n height width"] | None,
) -> tuple[Float[Array, "batch n masks height width"], Float[Array, "batch n masks"]]:
    """Predicts all masks of each prompt, first the one for unambiguous prompts.

    Args:
        model: SAM.
        embedded: features of images, see `Sam.predict_masks`.
        prompts: points and labels, see `Sam.predict_masks`, and which of them are there.
        masks: see `Sam.predict_masks`.

    Returns:
        Logits and predicted IoU, float32.
    """
    points, labels, present = prompts
    inputs = model.embed_prompts(embedded, points, labels, masks)
    shape = labels.shape[:2]
    found, scores = model.decoder(*inputs, present.reshape(-1, labels.shape[2]))
    return found.reshape(*shape, *found.shape[1:]), scores.reshape(*shape, -1)
