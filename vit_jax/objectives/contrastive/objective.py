"""Image-text contrastive learning: CLIP's softmax and SigLIP's sigmoid loss."""

import dataclasses
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, Key

from vit_jax.errors import UserError, check_name
from vit_jax.models.definition import Params
from vit_jax.objectives.base import Batch, Context, Metrics, Objective
from vit_jax.objectives.contrastive.loss import FORMS, LOSSES, contrastive_loss
from vit_jax.objectives.contrastive.several_captions import several_captions_loss


class Contrastive(Objective):
    """Aligns each image with its caption against all other pairs of the global batch.

    With `config.data.captions_per_image` above 1, all captions of an image are positives, see
    `objectives.contrastive.several_captions`. Subclasses that take one caption say so.

    Metrics: `logit_scale`, `logit_bias` for models that have one, and for the softmax loss the
    accuracies of `contrastive_loss`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Keys of the objective.

        Attributes:
            loss: "softmax" (CLIP) or "sigmoid" (SigLIP).
            form: "gathered", "ring" or "tiled": the same loss with decreasing memory, see
                `objectives.contrastive.loss`.
            tile_size: largest side of a tile of logits in pairs, for "tiled".
        """

        loss: str = "softmax"
        form: str = "gathered"
        tile_size: int = 1024

    is_mean_over_examples = False
    takes_several_captions: ClassVar[bool] = True

    def __init__(self, config: Config, context: Context):
        """Checks that the model embeds images and texts.

        Args:
            config: keys of the objective.
            context: model and devices.

        Raises:
            UserError: an unknown loss or form, one that does not take several captions per image, a
                model without the methods `encode_image`, `encode_text` and `logit_parameters`, or
                without a bias for the sigmoid loss.
        """
        super().__init__(config, context)
        check_name(config.loss, LOSSES, "config.objective.loss,")
        check_name(config.form, FORMS, "config.objective.form,")
        if not is_dual_encoder(context.module):
            raise UserError(
                "config.objective.name='contrastive' compares images with texts: it needs a dual "
                f"encoder, as clip_vit_b16; found {context.architecture_name}"
            )
        if config.loss == "sigmoid" and not _has_logit_bias(context):
            raise UserError(
                "config.objective.loss='sigmoid' needs config.model.init_logit_bias (SigLIP: -10.0)"
            )
        if "captions" in self.fields and config.loss == "softmax" and config.form != "gathered":
            raise UserError(
                f"config.objective.form={config.form!r}: the softmax loss of several captions per "
                "image needs 'gathered'; the sigmoid loss takes any form"
            )

    @property
    def fields(self) -> tuple[str, ...]:  # type: ignore[override]
        """Fields of a batch that are read; "captions" for several captions per image."""
        several = self.takes_several_captions and self.context.captions_per_image > 1
        return ("image", "captions" if several else "tokens")

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch of `image`, and `tokens` or `captions`.

        `tokens` are (B, length), `captions` (B, K, length).
        """
        arrays = tuple(batch[name] for name in self.fields)
        images, texts = self.context.microbatches.run(self._embed, model, arrays, rng)
        if "captions" in self.fields:
            texts = texts.reshape(len(texts), -1, images.shape[1])
        return self.compare(model, images, texts)

    def compare(
        self, model: Any, images: Float[Array, "batch dim"], texts: Float[Array, "batch *k dim"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Computes loss and metrics of embeddings.

        Args:
            model: bound model, for scale and bias of the logits.
            images: embeddings of the global batch (B, D), of length 1.
            texts: embeddings of the captions, (B, D) or (B, K, D), of length 1.
        """
        scale, bias = model.logit_parameters()
        loss_of = contrastive_loss if texts.ndim == 2 else several_captions_loss
        loss, metrics = loss_of(
            images,
            texts,
            logit_scale=scale,
            logit_bias=bias,
            loss=self.config.loss,
            form=self.config.form,
            tile_size=self.config.tile_size,
            mesh=self.context.mesh,
            batch_axes=self.context.batch_axes,
        )
        metrics = {**metrics, "logit_scale": scale}
        if bias is not None:
            metrics["logit_bias"] = bias
        return loss, metrics

    def _embed(
        self, model: Any, images: jax.Array, tokens: jax.Array, rng: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Embeddings of unit length of images (B, D) and texts (B, D), or (B, K D) of captions."""
        image_rng, text_rng = (None, None) if rng is None else jax.random.split(rng)
        pixels = self.context.spec.inputs.normalize(images)
        texts = model.encode_text(
            tokens.reshape(-1, tokens.shape[-1]), normalize=True, rng=text_rng
        )
        return (
            model.encode_image(pixels, normalize=True, rng=image_rng),
            texts.reshape(len(tokens), -1),
        )


def is_dual_encoder(module: Any) -> bool:
    """Returns whether a model embeds images and texts in one space, with a scale of logits."""
    return all(hasattr(module, x) for x in ("encode_image", "encode_text", "logit_parameters"))


def _has_logit_bias(context: Context) -> bool:
    _, bias = jax.eval_shape(
        lambda params: context.model.bind(params).logit_parameters(), context.model.shapes()
    )
    return bias is not None
